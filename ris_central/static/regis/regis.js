"use strict";
// What every page shares: failures that are seen, rows that open, lists that are walked by keys, live sockets that return.

const Regis = (() => {
  const toast = document.getElementById("toast");

  function say(kind) {
    toast.textContent = toast.dataset[kind] || kind;
    toast.hidden = false;
    clearTimeout(say.timer);
    say.timer = setTimeout(() => { toast.hidden = true; }, 8000);
  }

  // A socket that comes back by itself. onMessage gets parsed JSON; onOpen runs at each (re)connection, to catch up.
  function live(path, onMessage, onOpen) {
    let wait = 500;
    function open() {
      const scheme = location.protocol === "https:" ? "wss:" : "ws:";
      const socket = new WebSocket(`${scheme}//${location.host}${path}`);
      socket.onopen = () => { wait = 500; document.body.dataset.live = "on"; if (onOpen) onOpen(); };
      socket.onmessage = (event) => onMessage(JSON.parse(event.data));
      socket.onclose = () => { document.body.dataset.live = "off"; setTimeout(open, wait); wait = Math.min(wait * 2, 15000); };
    }
    open();
  }

  function csrf() {
    return JSON.parse(document.body.getAttribute("hx-headers"))["X-CSRFToken"];
  }

  document.addEventListener("click", (event) => {
    const row = event.target.closest("tr.is-link[data-href]");
    if (row && !event.target.closest("a, button, input, select, label")) location.href = row.dataset.href;
  });

  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, textarea, select, [contenteditable]") || event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = [...document.querySelectorAll("table.list tr.is-link[data-href]")];
    if (!rows.length) return;
    const current = rows.findIndex((row) => row.classList.contains("is-selected"));
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      rows.forEach((row) => row.classList.remove("is-selected"));
      const next = rows[Math.max(0, Math.min(rows.length - 1, current + step))];
      next.classList.add("is-selected");
      next.scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter" && current >= 0) {
      location.href = rows[current].dataset.href;
    } else if (event.key === "/") {
      const search = document.querySelector("input[type=search]");
      if (search) { event.preventDefault(); search.focus(); }
    }
  });

  document.addEventListener("htmx:sendError", () => say("offline"));
  document.addEventListener("htmx:responseError", (event) => say([401, 403].includes(event.detail.xhr.status) ? "refused" : "failed"));

  return { say, live, csrf };
})();
