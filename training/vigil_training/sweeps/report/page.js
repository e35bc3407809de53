
// A trial under the pointer, or chosen by its button in the table, is marked everywhere.
{
  let chosen = null;
  const mark = (trial) => each(document, "[data-trial]", (one) => one.classList.toggle("marked", one.dataset.trial === trial || one.dataset.trial === chosen));
  each(document, "svg [data-trial]", (one) => {
    one.addEventListener("pointerenter", () => mark(one.dataset.trial));
    one.addEventListener("pointerleave", () => mark(null));
  });
  each(document, ".pick", (button) => button.addEventListener("click", () => {
    const trial = button.closest("tr").dataset.trial;
    chosen = chosen === trial ? null : trial;
    each(document, ".pick", (one) => one.setAttribute("aria-pressed", one.closest("tr").dataset.trial === chosen));
    mark(null);
  }));
}
