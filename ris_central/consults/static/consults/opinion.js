"use strict";
// The opinion is saved while it is typed; what the centre does not have yet stays in this browser.
(() => {
  const form = document.getElementById("opinion-form");
  if (!form) return;
  const field = document.getElementById("opinion"), state = document.getElementById("opinion-state");
  const key = `regis-opinion-${form.dataset.key}`;
  let version = Number(form.dataset.version), saved = field.value, timer = 0, busy = false;

  async function send(url) {
    clearTimeout(timer);
    if (busy) { timer = setTimeout(() => send(form.dataset.save), 500); return false; }
    busy = true;
    const typed = field.value;
    try {
      const answer = await fetch(url, {
        method: "POST",
        headers: { "X-CSRFToken": Regis.csrf(), "Content-Type": "application/x-www-form-urlencoded" },
        body: new URLSearchParams({ opinion: typed, version }),
      });
      const body = (answer.headers.get("content-type") || "").includes("json") ? await answer.json() : {};
      if (!answer.ok) {
        state.textContent = body.title || answer.status;
        if (body.current) version = body.current.version;
        return false;
      }
      version = body.version;
      saved = typed;
      if (field.value === saved) localStorage.removeItem(key);
      state.textContent = `${form.dataset.saved} ${new Date().toLocaleTimeString()}`;
      return true;
    } catch {
      state.textContent = form.dataset.waiting;
      timer = setTimeout(() => send(form.dataset.save), 4000);
      return false;
    } finally { busy = false; }
  }
  field.addEventListener("input", () => {
    localStorage.setItem(key, field.value);
    clearTimeout(timer);
    timer = setTimeout(() => send(form.dataset.save), 1200);
  });
  async function sign() {
    if (!confirm(form.dataset.confirm)) return;
    while (busy) await new Promise((resolve) => setTimeout(resolve, 100));
    if (await send(form.dataset.sign)) { localStorage.removeItem(key); location.reload(); }
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); sign(); });
  field.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); sign(); } });
  const kept = localStorage.getItem(key);
  if (kept !== null && kept !== saved) { field.value = kept; state.textContent = form.dataset.kept; send(form.dataset.save); }
})();
