"use strict";
// No sentence is lost: each stop in typing is saved at the centre, each keystroke is kept in this browser until it is.
(() => {
  const form = document.getElementById("report-form");
  const find = (id) => document.getElementById(id);

  async function post(url, fields) {
    const answer = await fetch(url, {
      method: "POST",
      headers: { "X-CSRFToken": Regis.csrf(), "Content-Type": "application/x-www-form-urlencoded" },
      body: new URLSearchParams(fields),
    });
    const isJson = (answer.headers.get("content-type") || "").includes("json");
    return { ok: answer.ok && isJson, status: answer.status, body: isJson ? await answer.json() : {} };
  }

  const addendum = find("addendum");
  if (addendum) addendum.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!confirm(addendum.dataset.confirm)) return;
    try {
      const answer = await post(addendum.getAttribute("action"), { text: addendum.text.value });
      if (answer.ok) location.reload(); else Regis.say(answer.body.title || "failed");
    } catch { Regis.say("offline"); }
  });
  if (!form) return;

  const findings = find("report-findings"), conclusion = find("report-conclusion");
  const state = find("report-state"), errorLine = find("report-error"), conflictBox = find("report-conflict"), recoverBox = find("report-recover");
  const key = `regis-report-${form.dataset.study}`;
  let version = Number(form.dataset.version);
  let saved = { findings: findings.value, conclusion: conclusion.value };
  let timer = 0, busy = false, conflict = null;

  const text = () => ({ findings: findings.value, conclusion: conclusion.value });
  const same = (a, b) => a.findings === b.findings && a.conclusion === b.conclusion;
  const join = (one) => [one.findings, one.conclusion].filter(Boolean).join("\n\n");
  const show = (word, extra = "") => { state.textContent = form.dataset[word] + extra; };

  function keep() { localStorage.setItem(key, JSON.stringify({ ...text(), version, at: new Date().toISOString() })); }
  function forget() { localStorage.removeItem(key); }

  function taken(answer) {
    version = answer.version;
    saved = { findings: answer.findings, conclusion: answer.conclusion };
    find("report-status").textContent = answer.status_label;
    errorLine.hidden = true;
    if (same(saved, text())) forget(); else keep();
    show("saved", ` ${new Date(answer.saved_at).toLocaleTimeString()}`);
  }

  function disagree(current) {
    conflict = current;
    find("report-theirs").textContent = join(current);
    find("report-mine").textContent = join(text());
    find("report-conflict-who").textContent = `${form.dataset.by} ${current.saved_by}`;
    conflictBox.hidden = false;
    conflictBox.scrollIntoView({ block: "nearest" });
    state.textContent = "";
  }

  async function save(url = form.dataset.save) {
    clearTimeout(timer);
    if (busy) { timer = setTimeout(() => save(), 500); return false; }
    if (conflict) return false;
    busy = true;
    const sent = text();
    show("saving");
    try {
      const answer = await post(url, { ...sent, version });
      if (answer.ok) { taken(answer.body); return true; }
      if (answer.body.current) { disagree(answer.body.current); return false; }
      errorLine.textContent = answer.body.title || `${answer.status}`;
      errorLine.hidden = false;
      state.textContent = "";
      return false;
    } catch {
      show("waiting");
      timer = setTimeout(() => save(), 4000);
      return false;
    } finally { busy = false; }
  }

  function typed() {
    keep();
    show("typing");
    clearTimeout(timer);
    timer = setTimeout(() => save(), 1200);
  }
  findings.addEventListener("input", typed);
  conclusion.addEventListener("input", typed);
  window.addEventListener("online", () => { if (!same(saved, text())) save(); });
  window.addEventListener("beforeunload", (event) => { if (!same(saved, text())) { keep(); event.preventDefault(); } });

  async function sign() {
    if (!confirm(form.dataset.confirm)) return;
    while (busy) await new Promise((resolve) => setTimeout(resolve, 100));
    if (await save(form.dataset.sign)) { saved = text(); forget(); location.reload(); }
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); sign(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#report-form")) { event.preventDefault(); sign(); }
  });

  conflictBox.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-conflict]")?.dataset.conflict;
    if (!choice || !conflict) return;
    const mine = text(), theirs = conflict;
    version = theirs.version;
    saved = { findings: theirs.findings, conclusion: theirs.conclusion };
    if (choice === "theirs") { findings.value = theirs.findings; conclusion.value = theirs.conclusion; }
    if (choice === "both") {
      for (const [field, name] of [[findings, "findings"], [conclusion, "conclusion"]])
        if (theirs[name] !== mine[name]) field.value = [theirs[name], mine[name]].filter(Boolean).join("\n\n");
    }
    conflict = null;
    conflictBox.hidden = true;
    if (same(saved, text())) { forget(); show("saved"); } else { keep(); save(); }
  });

  const kept = JSON.parse(localStorage.getItem(key) || "null");
  if (kept && same(kept, saved)) forget();
  else if (kept) {
    find("report-recover-text").textContent = join(kept);
    find("report-recover-when").textContent = new Date(kept.at).toLocaleString();
    recoverBox.hidden = false;
  }
  recoverBox.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-recover]")?.dataset.recover;
    if (!choice) return;
    recoverBox.hidden = true;
    if (choice === "drop") { forget(); return; }
    if (kept.version === version || !join(saved)) { findings.value = kept.findings; conclusion.value = kept.conclusion; typed(); }
    else { findings.value = kept.findings; conclusion.value = kept.conclusion; disagree({ ...saved, version, saved_by: "" }); }
  });

  const texts = JSON.parse(find("report-snippet-texts").textContent);
  find("report-snippets").addEventListener("change", (event) => {
    const chosen = texts.find((one) => one.key === event.target.value);
    event.target.value = "";
    if (!chosen) return;
    findings.value = [findings.value.trim(), chosen.findings].filter(Boolean).join("\n\n");
    conclusion.value = [conclusion.value.trim(), chosen.conclusion].filter(Boolean).join("\n");
    typed();
  });
})();
