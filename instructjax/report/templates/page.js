(() => {
  "use strict";
  const maps = [...document.querySelectorAll(".tokens")];
  const tokensOf = (map) => [...map.querySelectorAll("span")];
  const show = (map, token) => {
    map.querySelectorAll(".on").forEach((other) => other.classList.remove("on"));
    const detail = map.parentElement.querySelector(".detail");
    if (!token) { detail.textContent = detail.dataset.hint; return; }
    token.classList.add("on");
    detail.textContent = token.textContent + "   " + token.dataset.t;
  };
  const paint = (layer) => {
    for (const map of maps) {
      for (const token of tokensOf(map)) {
        const s = Number(token.dataset.s.split(" ")[layer]);
        token.style.setProperty("--s", Math.abs(s));
        token.classList.toggle("minus", s < 0);
      }
    }
  };
  for (const map of maps) {
    const at = (event) => (event.target.dataset.s ? event.target : null);
    for (const token of tokensOf(map)) token.removeAttribute("title");
    map.addEventListener("pointerover", (event) => at(event) && show(map, at(event)));
    map.addEventListener("click", (event) => show(map, at(event)));
    map.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const tokens = tokensOf(map);
      const now = tokens.findIndex((token) => token.classList.contains("on"));
      const next = now < 0 ? 0 : Math.min(Math.max(now + step, 0), tokens.length - 1);
      show(map, tokens[next]);
    });
  }
  document.querySelectorAll("input[name=layer]").forEach((input) => {
    input.addEventListener("change", () => paint(Number(input.value)));
  });
})();
