for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.setAttribute("aria-label", "Sort by " + head.dataset.name);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value;
      const number = text => text === "inf" ? Infinity : text === "-inf" ? -Infinity : +text;
      const compare = head.dataset.sort === "text"
        ? (a, b) => sign * a.localeCompare(b)
        : (a, b) => {
            const [x, y] = [number(a), number(b)];
            return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x > y ? 1 : x < y ? -1 : 0);
          };
      body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
    });
    head.querySelector(".unit").append(button);
  });
}
