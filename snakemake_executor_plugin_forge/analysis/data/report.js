"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  for (const name of ["timeline", "memory", "cpu"]) {
    const place = document.getElementById(`chart-${name}`);
    if (!place) continue;
    const figure = read(`data-${name}`);
    Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displayModeBar: false, doubleClick: still ? false : "reset" });
  }
  document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true"); // where plotly measures its texts

  // The table of attempts: filtered, sorted and shown in pages here, so that 10,000 of them stay quick.
  const all = read("data-attempts");
  const [RULE, WILDCARDS, TRY, OUTCOME, BEGIN, SECONDS, MEMORY, LIMIT, CPU, CPUS, REASON] = Array(11).keys();
  const PAGE = 100;
  const text = document.getElementById("filter-text"), outcome = document.getElementById("filter-outcome");
  const body = document.querySelector("#attempts tbody"), status = document.getElementById("status");
  const back = document.getElementById("back"), next = document.getElementById("next");
  let key = BEGIN, down = false, page = 0;

  const bytes = (n) => {
    if (n === null) return "–";
    for (const unit of ["B", "KiB", "MiB", "GiB"]) { if (n < 1024) return unit === "B" ? `${n} B` : `${n.toFixed(1)} ${unit}`; n /= 1024; }
    return `${n.toFixed(1)} TiB`;
  };
  const cell = (row, content, kind) => { const td = row.insertCell(); td.textContent = content; if (kind) td.className = kind; };
  const show = () => {
    const wanted = text.value.toLowerCase(), state = outcome.value;
    const found = all.filter((a) => (!state || a[OUTCOME] === state) && (!wanted || `${a[RULE]} ${a[WILDCARDS]} ${a[REASON]}`.toLowerCase().includes(wanted)));
    const order = (a, b) => (typeof a[key] === "string" ? a[key].localeCompare(b[key]) : (a[key] ?? -1) - (b[key] ?? -1));
    found.sort((a, b) => (down ? order(b, a) : order(a, b)));
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    body.replaceChildren();
    for (const a of found.slice(page * PAGE, (page + 1) * PAGE)) {
      const row = body.insertRow();
      cell(row, a[RULE]); cell(row, a[WILDCARDS]); cell(row, a[TRY], "n");
      cell(row, a[OUTCOME], a[OUTCOME] === "succeeded" ? "good" : "bad");
      cell(row, a[BEGIN].toFixed(1), "n"); cell(row, a[SECONDS].toFixed(2), "n");
      cell(row, bytes(a[MEMORY]), "n"); cell(row, bytes(a[LIMIT]), "n");
      cell(row, a[CPU] === null ? "–" : a[CPU].toFixed(2), "n"); cell(row, a[CPUS], "n"); cell(row, a[REASON]);
    }
    status.textContent = `${found.length} of ${all.length} attempts, page ${page + 1} of ${pages}`;
    back.disabled = page === 0; next.disabled = page === pages - 1;
  };
  text.addEventListener("input", () => { page = 0; show(); });
  outcome.addEventListener("change", () => { page = 0; show(); });
  back.addEventListener("click", () => { page -= 1; show(); });
  next.addEventListener("click", () => { page += 1; show(); });
  for (const button of document.querySelectorAll("#attempts thead button")) {
    button.addEventListener("click", () => {
      const column = Number(button.dataset.column);
      down = column === key ? !down : false; key = column; page = 0;
      for (const head of document.querySelectorAll("#attempts thead th")) head.removeAttribute("aria-sort");
      button.closest("th").setAttribute("aria-sort", down ? "descending" : "ascending");
      show();
    });
  }
  show();
})();
