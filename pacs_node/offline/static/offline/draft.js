"use strict";
// No sentence is lost: each pause in typing is saved at the node, each keystroke is kept in this browser until it is.
(() => {
  const form = document.getElementById("draft");
  if (!form) return;
  const find = (id) => document.getElementById(id);
  const findings = find("findings"), conclusion = find("conclusion"), state = find("draft-state");
  const conflictBox = find("conflict"), recoverBox = find("recover");
  const key = `regis-draft-${form.dataset.user}-${form.dataset.study}`;
  let version = Number(form.dataset.version);
  const text = () => ({ findings: findings.value, conclusion: conclusion.value });
  const same = (a, b) => a.findings === b.findings && a.conclusion === b.conclusion;
  const joined = (one) => [one.findings, one.conclusion].filter(Boolean).join("\n\n");
  let saved = text(), timer = 0, busy = false, conflict = null;
  const say = (word, extra = "") => { state.textContent = form.dataset[word] + extra; };
  const keep = () => localStorage.setItem(key, JSON.stringify({ ...text(), version }));
  const forget = () => localStorage.removeItem(key);

  function disagree(current, title) {
    conflict = current;
    find("conflict-title").textContent = title;
    find("theirs").textContent = joined(current);
    find("mine").textContent = joined(text());
    conflictBox.hidden = false;
    conflictBox.scrollIntoView({ block: "nearest" });
    state.textContent = "";
  }

  async function save(done = "") {
    clearTimeout(timer);
    if (conflict) return;
    if (busy) { timer = setTimeout(() => save(done), 300); return; }
    busy = true;
    const sent = text();
    try {
      const answer = await fetch(form.dataset.save, {
        method: "POST", redirect: "manual",
        headers: { "X-CSRFToken": form.elements.namedItem("csrfmiddlewaretoken").value },
        body: new URLSearchParams({ ...sent, version, done }),
      });
      const isJson = (answer.headers.get("content-type") || "").includes("json");
      const body = isJson ? await answer.json() : {};
      if (answer.ok && isJson) {
        version = body.version;
        saved = sent;
        if (!same(saved, text())) keep();  // what was typed meanwhile is still on its way
        else { forget(); say(done ? "given" : "saved", ` ${body.saved_at}`); }
      } else if (body.current) disagree(body.current, body.title);
      else { say("refused"); timer = setTimeout(() => save(done), 10000); }
    } catch {
      say("waiting");
      timer = setTimeout(() => save(done), 3000);
    } finally { busy = false; }
  }
  function typed() {
    keep();
    if (conflict) { find("mine").textContent = joined(text()); return; }
    say("typing");
    clearTimeout(timer);
    timer = setTimeout(() => save(), 700);
  }
  findings.addEventListener("input", typed);
  conclusion.addEventListener("input", typed);
  form.addEventListener("submit", (event) => { event.preventDefault(); save("1"); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); save("1"); }
  });
  window.addEventListener("beforeunload", (event) => { if (!same(saved, text())) { keep(); event.preventDefault(); } });

  conflictBox.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-conflict]")?.dataset.conflict;
    if (!choice || !conflict) return;
    const mine = text(), theirs = conflict;
    version = theirs.version;
    saved = { findings: theirs.findings, conclusion: theirs.conclusion };
    if (choice === "theirs") { findings.value = theirs.findings; conclusion.value = theirs.conclusion; }
    if (choice === "both") for (const [box, name] of [[findings, "findings"], [conclusion, "conclusion"]])
      if (theirs[name] !== mine[name]) box.value = [theirs[name], mine[name]].filter(Boolean).join("\n\n");
    conflict = null;
    conflictBox.hidden = true;
    if (same(saved, text())) { forget(); say("saved"); } else { keep(); save(); }
  });

  const kept = JSON.parse(localStorage.getItem(key) || "null");
  if (kept && same(kept, saved)) forget();
  else if (kept) { find("recover-text").textContent = joined(kept); recoverBox.hidden = false; }
  recoverBox.addEventListener("click", (event) => {
    const choice = event.target.closest("[data-recover]")?.dataset.recover;
    if (!choice) return;
    recoverBox.hidden = true;
    if (choice === "drop") { forget(); return; }
    const current = { ...saved, version };
    findings.value = kept.findings; conclusion.value = kept.conclusion;
    if (kept.version === version || !joined(saved)) typed(); else disagree(current, recoverBox.querySelector("p").textContent);
  });
})();
