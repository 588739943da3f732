"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const falls = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const key = (row) => row.cells[column];
      const order = (a, b) => {
        const [x, y] = [key(a).dataset.sort, key(b).dataset.sort];
        if (x !== undefined && y !== undefined) return (falls ? -1 : 1) * (x - y);
        if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1;
        const text = key(a).textContent.localeCompare(key(b).textContent, "en", { numeric: true });
        return (falls ? -1 : 1) * text;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}
