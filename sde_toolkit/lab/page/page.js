"use strict";
// The page's controls: what is shown, the order of the table, differences to a baseline, downloads, colours.
(() => {
  const at = (name) => document.getElementById(name);
  const data = JSON.parse(at("data").textContent);
  const FACETS = ["metric", "problem", "condition", "draws"];
  const SINGULAR = ["condition", "draws"]; // not shown where there is no choice
  let group = data.groups[0];
  let library = null;

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  const unique = (values) => [...new Set(values)];
  const checked = (place) => new Set([...at(place).querySelectorAll("input:checked")].map((box) => box.value));

  // ---- what is shown ----

  function fillSelect(select, values, chosen) {
    select.replaceChildren(...values.map((value) => element("option", value, { value })));
    select.value = chosen;
  }

  // The options of every facet, given the facets before it.
  function refreshFacets() {
    let groups = data.groups;
    for (const facet of FACETS) {
      const values = unique(groups.map((g) => g[facet]));
      fillSelect(at(facet), values, group[facet]);
      if (SINGULAR.includes(facet)) at(facet).parentElement.hidden = unique(data.groups.map((g) => g[facet])).length < 2;
      groups = groups.filter((g) => g[facet] === group[facet]);
    }
  }

  // The group that agrees with the changed facet, and with as many of the others as there are.
  function chooseGroup(changed) {
    const wanted = Object.fromEntries(FACETS.map((facet) => [facet, at(facet).value]));
    const agreement = (g) =>
      FACETS.reduce((sum, facet) => sum + (g[facet] === wanted[facet] ? (facet === changed ? 100 : 1) : 0), 0);
    group = data.groups.reduce((best, g) => (agreement(g) > agreement(best) ? g : best));
    refreshFacets();
    show();
  }

  function addBoxes(place, values, swatch) {
    for (const [index, value] of values.entries()) {
      const label = element("label", "");
      const box = element("input", "", { type: "checkbox", value });
      box.checked = true;
      box.addEventListener("change", show);
      label.append(box);
      if (swatch) {
        const mark = element("span", labChart.glyph(index), { "aria-hidden": "true" });
        mark.style.color = `var(${labChart.colourName(index)})`;
        label.append(mark);
      }
      label.append(element("span", value));
      at(place).append(label);
    }
  }

  function checkAll(value) {
    for (const box of at("samplers").querySelectorAll("input")) box.checked = value;
    show();
  }

  function shownRecords() {
    const [samplers, grids] = [checked("samplers"), checked("grids")];
    return group.records.map((i) => data.records[i]).filter((r) => samplers.has(r.sampler) && grids.has(r.grid));
  }

  function fits(place, samplers, grids) {
    const own = place.dataset;
    const same = (facet) => !own[facet] || own[facet] === group[facet];
    return (
      (!own.sampler || samplers.has(own.sampler)) && (!own.grid || grids.has(own.grid)) && same("problem") && same("condition")
    );
  }

  function show() {
    const [samplers, grids] = [checked("samplers"), checked("grids")];
    const rows = [...document.querySelectorAll("#table tr.result")];
    for (const row of document.querySelectorAll("#table tbody tr")) row.hidden = !fits(row, samplers, grids);
    for (const picture of document.querySelectorAll(".sample")) picture.hidden = !fits(picture, samplers, grids);
    for (const gallery of document.querySelectorAll(".gallery"))
      gallery.hidden = gallery.querySelector(".sample:not([hidden])") === null;
    at("status").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows are shown.`;
    at("shown-metric").textContent = `${group.metric} (${group.better === "closer" ? "closer to real data" : group.better} is better)`;
    at("axis-note").textContent =
      group.threshold === null
        ? ""
        : `Unbiased estimates may lie at or below zero: the axis is linear below ${labChart.plain(group.threshold)} and logarithmic above.`;
    for (const cell of document.querySelectorAll("#table [data-metric]"))
      cell.classList.toggle("shown", cell.dataset.metric === group.metric);
    fillBaselines();
    drawCharts();
  }

  function drawCharts() {
    if (!library) return;
    library.then(() => {
      const records = shownRecords();
      labChart.draw(at("chart-nfe"), records, group, data.samplers, "nfe", "network evaluations per sample");
      labChart.draw(at("chart-seconds"), records, group, data.samplers, "seconds", "seconds for all samples");
    });
  }

  // ---- the table ----

  function makeSortable(table) {
    for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
      const button = element("button", head.textContent, { type: "button" });
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sortBy(table, column, head));
    }
  }

  function sortBy(table, column, head) {
    const rising = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.querySelectorAll("tr.result")];
    const key = (row) => [row.cells[column].dataset.number || "", row.cells[column].textContent];
    rows.sort((a, b) => {
      const [[m, s], [n, t]] = [key(a), key(b)];
      if (m === "" && n === "") return (s === "") - (t === "") || (rising ? 1 : -1) * s.localeCompare(t);
      if (m === "" || n === "") return m === "" ? 1 : -1;
      return (rising ? 1 : -1) * (Number(m) - Number(n));
    });
    const after = body.querySelector("tr.reference");
    for (const row of rows) {
      row.classList.remove("first");
      body.insertBefore(row, after);
    }
  }

  // ---- differences ----

  const nameOf = (r) => `${r.series}, ${/^\d+$/.test(r.setting) ? `${r.setting} steps` : r.setting}`;

  function difference(i, j) {
    const forwards = data.groups.indexOf(group) >= 0 && (group.differences[i] || {})[j];
    if (forwards) return forwards;
    const back = (group.differences[j] || {})[i];
    return back ? [-back[0], back[1]] : null;
  }

  function shownMembers() {
    const shown = new Set(shownRecords());
    return group.records.filter((i) => shown.has(data.records[i]));
  }

  function fillBaselines() {
    const members = shownMembers();
    const select = at("baseline");
    const before = select.value;
    const sign = labChart.signOf(group);
    const best = members.reduce((a, b) => (a === null || sign * data.records[b].value < sign * data.records[a].value ? b : a), null);
    const options = members.map((i) => element("option", nameOf(data.records[i]), { value: String(i) }));
    if (best !== null) options.unshift(element("option", `${group.better === "closer" ? "the lowest" : "the best"}: ${nameOf(data.records[best])}`, { value: "best" }));
    select.replaceChildren(...options);
    select.value = members.map(String).includes(before) ? before : "best";
    select.dataset.best = best === null ? "" : String(best);
    showDifferences();
  }

  function verdict(name, base, pair) {
    const [d, e] = pair;
    if (Math.abs(d) < 2 * e) return `cannot be told apart from ${base}`;
    const amount = labChart.plusMinus(Math.abs(d), e);
    if (group.better === "closer") return `${name} lies ${d < 0 ? "below" : "above"} ${base} by ${amount}`;
    return labChart.signOf(group) * d < 0 ? `${name} beats ${base} by ${amount}` : `${base} beats ${name} by ${amount}`;
  }

  function cell(label, text, number = "") {
    const kind = label === "verdict" ? "wordy" : "plain";
    return element("td", text, { role: "cell", class: kind, "data-label": label, "data-number": number });
  }

  function showDifferences() {
    const select = at("baseline");
    const chosen = select.value === "best" ? select.dataset.best : select.value;
    at("complaint").textContent = group.complaint ? `No differences: ${group.complaint}.` : "";
    const rows = [];
    for (const i of chosen === "" || group.complaint ? [] : shownMembers()) {
      if (String(i) === chosen) continue;
      const [name, base] = [nameOf(data.records[i]), nameOf(data.records[chosen])];
      const pair = difference(i, Number(chosen));
      const row = element("tr", "", { class: "result", role: "row" });
      row.append(element("th", name, { scope: "row", role: "rowheader" }));
      row.append(
        cell("difference", pair ? labChart.plusMinus(...pair) : "", pair ? String(pair[0]) : ""),
        cell("verdict", pair ? verdict(name, base, pair) : "not computed: choose a better baseline"),
      );
      rows.push(row);
    }
    rows.sort((a, b) => Number(a.cells[1].dataset.number) - Number(b.cells[1].dataset.number));
    at("pairs").tBodies[0].replaceChildren(...rows);
    for (const head of at("pairs").tHead.rows[0].cells) head.setAttribute("aria-sort", "none");
  }

  // ---- downloads ----

  function download(name, kind, text) {
    const address = URL.createObjectURL(new Blob([text], { type: kind }));
    const link = element("a", "", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  async function downloadChart(cost) {
    await library;
    download(`quality-${cost}.svg`, "image/svg+xml", await labChart.svg(at(`chart-${cost}`)));
  }

  // ---- colours ----

  const media = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (media.matches ? "dark" : "light")) === "dark";

  function refreshTheme() {
    at("theme").setAttribute("aria-pressed", String(isDark()));
    drawCharts();
  }

  function toggleTheme() {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    refreshTheme();
  }

  // ---- the chart library, compressed in the page ----

  async function unpack() {
    const bytes = Uint8Array.from(atob(at("library").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("plotly.js did not start");
  }

  function start() {
    for (const name of ["filters", "theme", "curves", "differences", "downloads"]) at(name).hidden = false;
    addBoxes("samplers", data.samplers, true);
    addBoxes("grids", data.grids, false);
    for (const facet of FACETS) at(facet).addEventListener("change", () => chooseGroup(facet));
    at("filters").addEventListener("submit", (event) => event.preventDefault());
    at("all-samplers").addEventListener("click", () => checkAll(true));
    at("no-samplers").addEventListener("click", () => checkAll(false));
    at("baseline").addEventListener("change", showDifferences);
    at("download-csv").addEventListener("click", () => download("records.csv", "text/csv", data.csv));
    at("download-json").addEventListener("click", () => download("records.json", "application/json", JSON.stringify(data.json, null, 1)));
    for (const cost of ["nfe", "seconds"]) at(`svg-${cost}`).addEventListener("click", () => downloadChart(cost));
    at("theme").addEventListener("click", toggleTheme);
    media.addEventListener("change", refreshTheme);
    makeSortable(at("table"));
    makeSortable(at("pairs"));
    library = unpack();
    library.catch((error) => {
      for (const cost of ["nfe", "seconds"])
        at(`chart-${cost}`).textContent = `The chart could not be drawn (${error.message}); the table holds its values.`;
    });
    refreshFacets();
    refreshTheme();
    show();
    library.then(() => document.documentElement.setAttribute("data-ready", "yes"), () => {});
  }

  start();
})();
