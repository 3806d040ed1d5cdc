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
    const url = new URL(viewer.getAttribute("src") || viewer.dataset.src, location.href);
    const shown = new Set(url.searchParams.get("StudyInstanceUIDs").split(","));
    if (shown.has(button.dataset.beside)) return;
    shown.add(button.dataset.beside);
    viewer.src = `${url.pathname}?StudyInstanceUIDs=${[...shown].join(",")}`;
    fetch(button.dataset.record, { method: "POST", headers: { "X-CSRFToken": Regis.csrf() } }).catch(() => Regis.say("offline"));
  });

  // A viewer inside the clinic reads the clinic's own node: the token goes over in the fragment, and again before it ends.
  const atNodes = new Map();
  async function token() {
    const answer = await fetch(space.dataset.tokens, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRFToken": Regis.csrf() },
      body: JSON.stringify({ studies: [space.dataset.uid] }),
    });
    return answer.ok ? (await answer.json()).token : null;
  }
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-at-node]");
    if (!button) return;
    const opened = window.open("", "_blank");
    const given = await token().catch(() => null);
    if (!given) { opened?.close(); Regis.say("failed"); return; }
    const address = new URL(`viewer/viewer?StudyInstanceUIDs=${space.dataset.uid}`, button.dataset.atNode.replace(/\/?$/, "/"));
    atNodes.set(opened, address.origin);
    opened.location = `${address}#token=${given}`;
  });
  window.addEventListener("message", async (event) => {
    if (event.data?.type !== "regis-image-token-wanted" || atNodes.get(event.source) !== event.origin) return;
    const given = await token().catch(() => null);
    if (given) event.source.postMessage({ type: "regis-image-token", token: given }, event.origin);
  });

  // Images that are still on their way: the viewer opens with the first, and shows what came since when asked. It takes
  // them in by itself only while nobody works in it.
  const line = document.getElementById("opening");
  const state = () => line.querySelector(".opening")?.dataset.state;
  const openNow = () => Number(line.querySelector(".opening")?.dataset.openNow || 0);
  let shown = viewer.getAttribute("src") ? openNow() : 0;
  let used = false, timer = null;
  window.addEventListener("blur", () => setTimeout(() => { if (document.activeElement === viewer) used = true; }));

  function show() {
    shown = openNow();
    viewer.src = viewer.getAttribute("src") || viewer.dataset.src;
    arrived();
  }
  function arrived() {
    const button = document.getElementById("show-new");
    if (button) button.hidden = !(shown && openNow() > shown);
  }
  async function look() {
    timer = null;
    const answer = await fetch(space.dataset.opening, { headers: { "HX-Request": "true" } }).catch(() => null);
    if (answer && answer.ok) {
      const next = document.createElement("div");
      next.innerHTML = await answer.text();
      // What a person asked for is not wiped away by the next look.
      if (!line.querySelector(".good") || next.querySelector(".opening")?.dataset.state !== state()) line.innerHTML = next.innerHTML;
    }
    htmx.process(line);
    if (openNow() && !shown) show();
    else if (openNow() > shown && state() === "ready" && !used) show();
    else if (openNow() > shown && state() === "ready") keepButton();
    arrived();
    if (state() !== "ready") timer = setTimeout(look, 3000);
  }
  function keepButton() {
    line.innerHTML = `<div class="opening is-arriving" data-state="ready" data-open-now="${openNow()}"><p class="opening-line"><button class="btn btn-sm btn-primary" type="button" id="show-new">${space.dataset.showAll}</button></p></div>`;
  }
  line.addEventListener("click", (event) => {
    if (!event.target.closest("#show-new")) return;
    used = false;
    show();
    if (state() === "ready") line.innerHTML = "";
  });
  if (state() !== "ready") timer = setTimeout(look, 1500);

  async function refresh() {
    const answer = await fetch(space.dataset.proof, { headers: { "HX-Request": "true" } }).catch(() => null);
    if (answer && answer.ok) { proof.innerHTML = await answer.text(); htmx.process(proof); }
    if (shown < Number(proof.querySelector("[data-known]")?.dataset.known || 0) && !timer) look();
  }
  Regis.live("/ws/worklist/", (message) => { if (message.studies.includes(Number(space.dataset.study))) refresh(); });
})();
