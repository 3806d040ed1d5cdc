"use strict";
// Choosing a known person fills the fields; an unknown one hides them. All of it is checked again at the node.
(() => {
  const form = document.getElementById("registration");
  if (!form) return;
  const field = (name) => form.elements.namedItem(name);
  const identity = document.getElementById("identity"), number = document.getElementById("number");
  const unknown = field("unknown"), kind = document.getElementById("kind"), device = field("ae_title");

  function take(one) {
    field("name").value = one.name || "";
    const born = one.born || "";
    field("birth_date").value = born.length === 8 ? `${born.slice(0, 4)}-${born.slice(4, 6)}-${born.slice(6)}` : "";
    field("sex").value = ["M", "F", "O"].includes(one.sex) ? one.sex : "";
    field("patient_id").value = one.id || "";
    field("issuer").value = one.issuer || "";
    number.hidden = !one.id;
    number.querySelector(".mono").textContent = one.id || "";
  }
  document.getElementById("found")?.addEventListener("click", (event) => {
    const chosen = event.target.closest(".found");
    if (!chosen) return;
    take(chosen.dataset);
    document.getElementById("found").replaceChildren();
    field("description").focus();
  });
  document.getElementById("forget")?.addEventListener("click", () => { take({}); field("name").focus(); });

  function show() {
    const known = !(unknown && unknown.checked);
    if (!field("seen").value) identity.hidden = !known;
    const own = device.selectedOptions[0]?.dataset.modality;
    kind.hidden = Boolean(own);
  }
  unknown?.addEventListener("change", show);
  device.addEventListener("change", show);
  show();
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
    if (event.key === "ArrowDown" && event.target.id === "find") { event.preventDefault(); document.querySelector(".found")?.focus(); }
    else if (event.key === "ArrowDown" && event.target.classList?.contains("found")) { event.preventDefault(); event.target.nextElementSibling?.focus(); }
    else if (event.key === "ArrowUp" && event.target.classList?.contains("found")) { event.preventDefault(); (event.target.previousElementSibling || document.getElementById("find")).focus(); }
  });
  // A form is sent once, however often the button is pressed; the node would make one of it anyway.
  form.addEventListener("submit", () => { setTimeout(() => { form.querySelector("button[type=submit]").disabled = true; }); });
})();
