"use strict";
// Rows are fetched again when the centre says that something this person may see has changed; the selection stays.
(() => {
  const rows = document.getElementById("worklist-rows");
  const filters = document.getElementById("worklist-filters");
  const state = document.getElementById("live-state");
  let running = false, again = false;

  async function refresh() {
    if (running) { again = true; return; }
    running = true;
    const page = new URLSearchParams(location.search).get("page");
    const asked = new URLSearchParams(new FormData(filters));
    if (page) asked.set("page", page);
    const selected = rows.querySelector("tr.is-selected")?.id;
    const known = new Set([...rows.querySelectorAll("tr[id]")].map((row) => row.id));
    try {
      const answer = await fetch(`${rows.dataset.url}?${asked}`, { headers: { "HX-Request": "true", "HX-Target": "worklist-rows" } });
      if (answer.ok) {
        rows.innerHTML = await answer.text();
        if (selected) document.getElementById(selected)?.classList.add("is-selected");
        for (const row of rows.querySelectorAll("tr[id]")) if (known.size && !known.has(row.id)) row.classList.add("is-new");
      }
    } catch { /* the socket's return refreshes again */ }
    running = false;
    if (again) { again = false; refresh(); }
  }

  Regis.live("/ws/worklist/", refresh, refresh);
  new MutationObserver(() => state.classList.toggle("text-warning", document.body.dataset.live === "off"))
    .observe(document.body, { attributes: true, attributeFilter: ["data-live"] });
})();
