"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const at = Object.fromEntries(data.columns.map((name, number) => [name, number]));
  const get = (row, name) => row[at[name]];
  const rows = data.rows.map((cells, number) => ({ number, cells, begin: data.drawn[number][0], wait: data.drawn[number][1], lane: data.drawn[number][2] }));

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined && text !== null) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const bytes = (number) => {
    if (number === null) return "–";
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (number >= 1024 && unit < 4) { number /= 1024; unit += 1; }
    return `${unit ? number.toFixed(1) : number} ${units[unit]}`;
  };
  const seconds = (number) => {
    if (number === null) return "–";
    if (number < 60) return `${number.toFixed(number < 10 ? 2 : 1)} s`;
    const minutes = Math.floor(number / 60);
    return minutes < 60 ? `${minutes} min ${Math.round(number % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  };
  const ms = (number) => seconds(number === null ? null : number / 1000);
  const job = (cells) => `${get(cells, "process")} ${get(cells, "tag")}`.trim();

  // -- the details of an attempt
  const drawer = byId("drawer"), body = byId("drawer-body");
  const section = (title, ...parts) => body.append(element("h3", title), ...parts);
  const text = (words, label) => {
    const made = element("pre", words);
    made.tabIndex = 0;
    made.setAttribute("aria-label", label);
    return made;
  };
  const list = (pairs) => {
    const made = element("dl");
    for (const [name, value] of pairs) {
      const cell = element("dd");
      cell.append(value);
      made.append(element("dt", name), cell);
    }
    return made;
  };
  const use = (cells) => {
    const table = element("table"), head = table.createTHead().insertRow(), rest = table.createTBody();
    for (const name of ["", "used", "limit", ""]) { const cell = element("th", name, "n"); cell.scope = "col"; head.append(cell); }
    for (const [name, used, limit, show] of [
      ["memory, with page cache", get(cells, "memory_peak_bytes"), get(cells, "memory"), bytes],
      ["wall time", get(cells, "realtime"), get(cells, "time"), ms],
      ["CPUs", get(cells, "%cpu") === null ? null : get(cells, "%cpu") / 100, get(cells, "cpus"), (n) => n === null ? "–" : n.toFixed(2)],
      ["temporary files", get(cells, "scratch_peak_bytes"), get(cells, "disk"), bytes],
    ]) {
      const row = rest.insertRow(), title = element("th", name);
      title.scope = "row";
      row.append(title, element("td", show(used), "n"), element("td", show(limit), "n"));
      const cell = row.insertCell();
      if (used !== null && limit) {
        const meter = element("meter");
        Object.assign(meter, { max: limit, high: 0.9 * limit, value: used });
        meter.setAttribute("aria-label", `${name}: ${show(used)} of ${show(limit)}`);
        cell.append(meter);
      }
    }
    return table;
  };
  const links = (cells) => {
    const directory = get(cells, "directory"), name = directory.slice(directory.lastIndexOf("/") + 1);
    if (data.archived.includes(get(cells, "run"))) return element("p", `${directory}: this run was compacted by snakemake-forge gc; attempts.jsonl.gz beside it has the record.`);
    const made = element("p");
    for (const file of ["verdict.json", "spec.json", "command.sh", "stdout.log", "stderr.log", "events.jsonl"]) {
      const link = element("a", file);
      link.href = [data.base, get(cells, "run"), encodeURIComponent(name), file].join("/");
      made.append(link, " ");
    }
    made.append(element("br"), element("code", directory));
    return made;
  };
  const open = (number) => {
    const cells = rows[number].cells, more = data.drawers[number], attempt = get(cells, "attempt"), outcome = get(cells, "outcome");
    byId("drawer-title").textContent = job(cells) + (attempt > 1 ? `, attempt ${attempt}` : "");
    body.replaceChildren(element("span", outcome, `badge ${outcome}`));
    if (outcome !== "succeeded") body.append(element("p", get(cells, "reason")));
    if (more && more.lines.length) body.append(list(more.lines));
    for (const note of more ? more.notes : []) body.append(element("p", note, "dim"));
    const exit = get(cells, "exit");
    body.append(list([["started", get(cells, "start") === null ? "–" : `${new Date(get(cells, "start")).toISOString().replace("T", " ").slice(0, 19)} UTC`],
      ["waited before", seconds(rows[number].wait)], ["exit", exit === null ? "–" : String(exit)], ["runtime", get(cells, "runtime")]]));
    section("Use and limits", use(cells));
    if (more) {
      section("Command", more.command ? text(more.command, "Command") : element("p", `No shell command; started by: ${more.how || "–"}.`));
      for (const [name, words] of more.said) section(`The last lines of ${name}`, text(words, `The last lines of ${name}`));
      if (!more.said.length) section("Output", element("p", "It wrote no log, nothing to stdout, and nothing to stderr."));
    } else {
      section("Command and logs", element("p", `They are not in this page, which has those of ${Object.keys(data.drawers).length} attempts. Show them with: snakemake-forge logs ${job(cells)}`));
    }
    section("Record", links(cells));
    drawer.showModal();
    drawer.scrollTop = 0;
  };
  const places = new Map(rows.map((row) => [get(row.cells, "directory").split("/").slice(-2).join("/"), row.number]));
  for (const button of document.querySelectorAll("[data-open]")) button.addEventListener("click", () => open(places.get(button.dataset.open)));
  byId("close").addEventListener("click", () => drawer.close());
  drawer.addEventListener("click", (event) => { if (event.target === drawer) drawer.close(); });

  // -- the timeline: the bars are one path for each rule, so the place tells which one is meant
  const ofRule = new Map();
  for (const row of rows) {
    const rule = get(row.cells, "process");
    if (!ofRule.has(rule)) ofRule.set(rule, []);
    ofRule.get(rule).push(row);
  }
  const hit = (event) => {
    const picture = event.currentTarget, frame = picture.getBoundingClientRect();
    const when = (event.clientX - frame.left) / frame.width * data.seconds, slack = 4 / frame.width * data.seconds;
    const lane = Math.floor((event.clientY - frame.top) / data.lanes[picture.dataset.rule]);
    let best = null, least = slack;
    for (const row of ofRule.get(picture.dataset.rule) || []) {
      if (row.lane !== lane) continue;
      const away = Math.max(row.begin - when, when - row.begin - get(row.cells, "realtime") / 1000, 0);
      if (away <= least) { best = row; least = away; }
    }
    return best;
  };
  for (const picture of document.querySelectorAll("svg.jobs")) {
    picture.addEventListener("pointermove", (event) => {
      const row = hit(event);
      byId("hover").textContent = row ? `${job(row.cells)}: ${get(row.cells, "outcome")}, ${ms(get(row.cells, "realtime"))}, from ${seconds(row.begin)}` : "\u00a0";
    });
    picture.addEventListener("click", (event) => { const row = hit(event); if (row) open(row.number); });
  }

  for (const graph of document.querySelectorAll("svg.graph")) {
    const frame = graph.parentElement;
    frame.scrollLeft = (frame.scrollWidth - frame.clientWidth) / 2;
  }

  // -- the table
  const PAGE = 100;
  const shown = [
    ["rule", "", (r) => get(r.cells, "process")], ["wildcards", "", (r) => get(r.cells, "tag")], ["try", "n", (r) => get(r.cells, "attempt")],
    ["outcome", "", (r) => get(r.cells, "outcome")], ["start", "n", (r) => r.begin, seconds], ["wait", "n", (r) => r.wait, seconds],
    ["time", "n", (r) => get(r.cells, "realtime"), ms], ["memory", "n", (r) => get(r.cells, "memory_peak_bytes"), bytes],
    ["limit", "n", (r) => get(r.cells, "memory"), bytes], ["CPU", "n", (r) => get(r.cells, "%cpu"), (n) => n === null ? "–" : `${n.toFixed(0)} %`],
    ["CPUs", "n", (r) => get(r.cells, "cpus")], ["reason", "long", (r) => get(r.cells, "outcome") === "succeeded" ? "" : get(r.cells, "reason")],
  ];
  const lines = document.querySelector("#attempts tbody"), heads = document.querySelector("#attempts thead tr");
  const wanted = byId("filter-text"), outcome = byId("filter-outcome"), status = byId("status"), back = byId("back"), next = byId("next");
  let key = 4, down = false, page = 0;
  const show = () => {
    const words = wanted.value.toLowerCase(), value = shown[key][2], sign = down ? -1 : 1;
    const found = rows.filter((row) => (!outcome.value || get(row.cells, "outcome") === outcome.value) &&
      (!words || `${job(row.cells)} ${get(row.cells, "reason")}`.toLowerCase().includes(words)));
    found.sort((one, two) => {
      const a = value(one), b = value(two);
      if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
      return a < b ? -sign : a > b ? sign : one.number - two.number;
    });
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    lines.replaceChildren();
    for (const row of found.slice(page * PAGE, (page + 1) * PAGE)) {
      const line = lines.insertRow();
      shown.forEach(([name, kind, of, as], column) => {
        const cell = line.insertCell(), words = as ? as(of(row)) : of(row);
        cell.className = name === "outcome" ? (words === "succeeded" ? "good" : words === "running" ? "" : "bad") : kind;
        if (column) { cell.textContent = words; return; }
        const button = element("button", words);
        button.type = "button";
        button.setAttribute("aria-label", `Details of ${job(row.cells)}`);
        button.addEventListener("click", () => open(row.number));
        cell.append(button);
      });
    }
    status.textContent = `${found.length} of ${rows.length} attempts, page ${page + 1} of ${pages}`;
    back.disabled = page === 0; next.disabled = page === pages - 1;
  };
  shown.forEach(([name, kind], column) => {
    const head = element("th", null, kind), button = element("button", name);
    head.scope = "col"; button.type = "button"; button.dataset.column = column;
    if (column === key) head.setAttribute("aria-sort", "ascending");
    button.addEventListener("click", () => {
      down = column === key ? !down : false; key = column; page = 0;
      for (const other of heads.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      show();
    });
    head.append(button); heads.append(head);
  });
  wanted.addEventListener("input", () => { page = 0; show(); });
  outcome.addEventListener("change", () => { page = 0; show(); });
  back.addEventListener("click", () => { page -= 1; show(); });
  next.addEventListener("click", () => { page += 1; show(); });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("tsv").addEventListener("click", () => {
    const lines = [data.columns, ...data.rows].map((cells) => cells.map((value) => value === null ? "-" : value).join("\t"));
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/tab-separated-values" }));
    link.download = "attempts.tsv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  show();
})();
