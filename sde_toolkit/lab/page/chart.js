"use strict";
// Charts of quality against cost, drawn by plotly.js.
//
// Where values or their error bars reach zero the axis is linear below a threshold c and logarithmic above,
//     s(y) = y / c for |y| <= c,    sign(y) (1 + log10(|y| / c)) beyond:
// values are drawn at s(y) on a linear axis of plotly, and the ticks carry the true values.
const labChart = (() => {
  const SYMBOLS = [
    ["circle", "\u25CF"], ["square", "\u25A0"], ["triangle-up", "\u25B2"], ["diamond", "\u25C6"],
    ["triangle-down", "\u25BC"], ["cross", "\u271A"], ["x", "\u2716"], ["star", "\u2605"],
    ["pentagon", "\u2B1F"], ["hexagon", "\u2B22"],
  ];
  const COLOURS = 7;
  const DASHES = ["solid", "dash", "dot", "dashdot"];

  function forward(value, threshold) {
    if (threshold === null) return Math.log10(value);
    const size = Math.abs(value) / threshold;
    return size <= 1 ? value / threshold : Math.sign(value) * (1 + Math.log10(size));
  }

  // Values for the ticks between two values: 1, 2, 5, 10, ..., and around zero 0 and the threshold.
  function ticks(low, high, threshold) {
    const floor = threshold === null ? low : threshold;
    const top = Math.max(Math.abs(low), Math.abs(high), floor);
    if (!(floor > 0 && Number.isFinite(top))) return [];
    const steps = top < 60 * floor ? [1, 2, 5] : [1];
    const decades = [];
    for (let k = Math.floor(Math.log10(floor)) - 1; k <= Math.ceil(Math.log10(top)); k += 1)
      for (const m of steps) decades.push(Number(`${m}e${k}`));
    if (threshold === null) return decades.filter((v) => v >= 0.7 * low && v <= 1.4 * high);
    const above = decades.filter((v) => v > 1.5 * threshold);
    const both = [...above.map((v) => -v).reverse(), -threshold, 0, threshold, ...above];
    const slack = 0.3 * threshold;
    return both.filter((v) => v >= Math.min(1.3 * low, -slack) && v <= 1.3 * high + slack);
  }

  const plain = (value) => String(Number(value.toPrecision(6)));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colourName = (index) => `--c${index % COLOURS}`;
  const glyph = (index) => SYMBOLS[index % SYMBOLS.length][1];

  function escaped(text) {
    return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  }

  function plusMinus(value, error) {
    if (!Number.isFinite(value) || !Number.isFinite(error) || error <= 0) return plain(value);
    const decimals = Math.min(Math.max(1 - Math.floor(Math.log10(error)), 0), 8);
    return `${value.toFixed(decimals)} \u00B1 ${error.toFixed(decimals)}`;
  }

  function hover(record) {
    const settings = Object.entries(record.settings)
      .filter(([, value]) => value !== "")
      .map(([name, value]) => `${escaped(name)}: ${escaped(value)}`);
    return [
      `<b>${escaped(record.series)}, ${escaped(record.setting)}</b>`,
      `${escaped(record.metric)}: ${plusMinus(record.value, record.error)}`,
      `NFE ${plain(record.nfe)}, ${record.seconds.toPrecision(3)} s`,
      ...settings,
    ].join("<br>");
  }

  // Records by curve, each ordered by cost.
  function curves(records, cost) {
    const found = new Map();
    for (const record of records) {
      if (!(record[cost] > 0) || !Number.isFinite(record.value)) continue;
      if (!found.has(record.series)) found.set(record.series, []);
      found.get(record.series).push(record);
    }
    for (const points of found.values()) points.sort((a, b) => a[cost] - b[cost]);
    return found;
  }

  function curveTrace(series, points, samplers, dash, cost, threshold) {
    const index = samplers.indexOf(points[0].sampler);
    const colour = css(colourName(index));
    const y = points.map((r) => forward(r.value, threshold));
    const above = points.map((r, i) => forward(r.value + (r.error || 0), threshold) - y[i]);
    const below = points.map((r, i) => y[i] - forward(r.value - (r.error || 0), threshold));
    return {
      type: "scatter", mode: "lines+markers", name: series, x: points.map((r) => r[cost]), y,
      error_y: { type: "data", symmetric: false, array: above, arrayminus: below, thickness: 1.2, width: 3, color: colour },
      line: { color: colour, width: 2, dash: DASHES[dash % DASHES.length] },
      marker: { color: colour, size: 9, symbol: SYMBOLS[index % SYMBOLS.length][0] },
      text: points.map(hover), hoverinfo: "text",
    };
  }

  // Less is better for the number that this makes of a value.
  const signOf = (group) => (group.better === "higher" ? -1 : 1);

  // The records that no other one beats at lower cost, as steps.
  function frontTrace(records, group, cost) {
    const [threshold, sign] = [group.threshold, signOf(group)];
    const ordered = records
      .filter((r) => r[cost] > 0 && Number.isFinite(r.value))
      .sort((a, b) => a[cost] - b[cost] || sign * (a.value - b.value));
    const front = [];
    for (const record of ordered)
      if (!front.length || sign * record.value < sign * front[front.length - 1].value) front.push(record);
    return {
      type: "scatter", mode: "lines", name: "Pareto front", x: front.map((r) => r[cost]),
      y: front.map((r) => forward(r.value, threshold)), hoverinfo: "skip",
      line: { color: css("--band"), width: 1.5, dash: "dot", shape: "hv" },
    };
  }

  function across(y0, y1, fill) {
    const line = fill ? { width: 0 } : { color: css("--band"), width: 1, dash: "dot" };
    return {
      type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y", y0, y1, layer: "below",
      fillcolor: css("--band"), opacity: fill ? 0.18 : 0.9, line,
    };
  }

  function layout(records, group, cost, title) {
    const threshold = group.threshold;
    const all = [...records, ...group.references].filter((r) => Number.isFinite(r.value));
    const ends = all.flatMap((r) => [r.value - (r.error || 0), r.value + (r.error || 0)]);
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const levels = ticks(low, high, threshold);
    const costs = records.map((r) => r[cost]).filter((c) => c > 0);
    const places = costs.length ? ticks(Math.min(...costs), Math.max(...costs), null) : [];
    const shapes = [];
    const annotations = [];
    for (const r of group.references) {
      shapes.push(across(forward(r.value - r.error, threshold), forward(r.value + r.error, threshold), true));
      shapes.push(across(forward(r.value, threshold), forward(r.value, threshold), false));
      annotations.push(note(escaped(r.label), 0.01, forward(r.value, threshold), "left", "top"));
    }
    if (threshold !== null) {
      shapes.push(across(1, 1, false));
      annotations.push(note(`linear below ${plain(threshold)}`, 0.99, 1, "right", "bottom"));
    }
    const axis = { gridcolor: css("--line"), linecolor: css("--soft"), zeroline: false, ticks: "outside", automargin: true };
    const span = forward(high, threshold) - forward(low, threshold) || 1;
    return {
      paper_bgcolor: css("--card"), plot_bgcolor: css("--card"), showlegend: false, hovermode: "closest", shapes, annotations,
      font: { color: css("--ink"), size: 12, family: "system-ui, sans-serif" }, margin: { l: 50, r: 12, t: 8, b: 44 },
      dragmode: window.innerWidth < 600 ? false : "zoom",
      hoverlabel: { bgcolor: css("--paper"), bordercolor: css("--soft"), font: { color: css("--ink"), size: 12 }, align: "left" },
      xaxis: { ...axis, type: "log", title: { text: title }, tickvals: places, ticktext: places.map(plain) },
      yaxis: {
        ...axis, type: "linear", title: { text: escaped(group.metric) }, tickvals: levels.map((v) => forward(v, threshold)),
        ticktext: levels.map(plain), range: [forward(low, threshold) - 0.06 * span, forward(high, threshold) + 0.06 * span],
      },
    };
  }

  function note(text, x, y, xanchor, yanchor) {
    return { text, xref: "paper", x, yref: "y", y, xanchor, yanchor, showarrow: false, bgcolor: css("--card"), borderpad: 1, font: { size: 11, color: css("--soft") } };
  }

  // Draw one chart; returns a promise.
  function draw(place, records, group, samplers, cost, title) {
    const found = curves(records, cost);
    const seen = new Map();
    const traces = group.better === "closer" ? [] : [frontTrace(records, group, cost)];
    for (const [series, points] of found) {
      const dash = seen.get(points[0].sampler) || 0;
      seen.set(points[0].sampler, dash + 1);
      traces.push(curveTrace(series, points, samplers, dash, cost, group.threshold));
    }
    place.setAttribute(
      "aria-label",
      `${group.metric} against ${title}: ${found.size} curves, ${[...found.keys()].join("; ")}. The table holds the values.`,
    );
    const options = { displayModeBar: false, responsive: true };
    return window.Plotly.react(place, traces, layout(records, group, cost, title), options);
  }

  async function svg(place) {
    const address = await window.Plotly.toImage(place, { format: "svg", width: 760, height: 480 });
    return decodeURIComponent(address.slice(address.indexOf(",") + 1));
  }

  return { colourName, draw, forward, glyph, plain, plusMinus, signOf, svg, ticks };
})();
