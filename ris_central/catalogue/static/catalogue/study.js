"use strict";
// The workspace: movable border, priors beside the study, proof that refreshes while images arrive.
(() => {
  const space = document.getElementById("workspace");
  const splitter = document.getElementById("splitter");
  const viewer = document.getElementById("viewer");
  const proof = document.getElementById("proof");
  const width = localStorage.getItem("regis-side-width");
  if (width) space.style.setProperty("--side", `${width}px`);

  function resize(to) {
    const side = Math.round(Math.min(Math.max(to, 320), space.clientWidth * 0.6));
    space.style.setProperty("--side", `${side}px`);
    localStorage.setItem("regis-side-width", side);
  }
  splitter.addEventListener("pointerdown", (event) => {
    splitter.setPointerCapture(event.pointerId);
    document.body.classList.add("moving");
    const move = (moved) => resize(space.getBoundingClientRect().right - moved.clientX);
    splitter.addEventListener("pointermove", move);
    splitter.addEventListener("pointerup", () => {
      splitter.removeEventListener("pointermove", move);
      document.body.classList.remove("moving");
    }, { once: true });
  });
  splitter.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: 40, ArrowRight: -40 }[event.key];
    if (step) resize(document.querySelector(".side-pane").clientWidth + step);
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-beside]");
    if (!button) return;
    const url = new URL(viewer.src, location.href);
    const shown = new Set(url.searchParams.get("StudyInstanceUIDs").split(","));
    if (shown.has(button.dataset.beside)) return;
    shown.add(button.dataset.beside);
    viewer.src = `${url.pathname}?StudyInstanceUIDs=${[...shown].join(",")}`;
    fetch(button.dataset.record, { method: "POST", headers: { "X-CSRFToken": Regis.csrf() } }).catch(() => Regis.say("offline"));
  });

  async function refresh() {
    const answer = await fetch(space.dataset.proof, { headers: { "HX-Request": "true" } }).catch(() => null);
    if (answer && answer.ok) proof.innerHTML = await answer.text();
  }
  Regis.live("/ws/worklist/", (message) => { if (message.studies.includes(Number(space.dataset.study))) refresh(); });
})();
