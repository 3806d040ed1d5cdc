"use strict";
// A part of a page that is fetched again whenever the centre says that something in it has changed.
(() => {
  const part = document.querySelector("[data-live-url]");
  let running = false, again = false;
  async function refresh() {
    if (running) { again = true; return; }
    running = true;
    const selected = part.querySelector("tr.is-selected")?.id;
    try {
      const answer = await fetch(part.dataset.liveUrl, { headers: { "HX-Request": "true", "HX-Target": part.id } });
      if (answer.ok) {
        part.innerHTML = await answer.text();
        htmx.process(part);
        if (selected) document.getElementById(selected)?.classList.add("is-selected");
      }
    } catch { /* the socket's return refreshes again */ }
    running = false;
    if (again) { again = false; refresh(); }
  }
  Regis.live(part.dataset.livePath, refresh, refresh);
})();
