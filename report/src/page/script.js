// Values under the pointer and zoom by dragging. The figures are read back from the drawn points.
for (const svg of document.querySelectorAll("svg[data-edges]")) {
  const [x0, x1, y0, y1] = svg.dataset.edges.split(" ").map(Number);
  const [left, right, top, bottom] = svg.dataset.plot.split(" ").map(Number);
  const inner = svg.querySelector(".zoom"), figure = svg.parentNode, name = svg.querySelector(".across").textContent;
  const labels = [...svg.querySelectorAll(".tx text")];
  const phases = svg.querySelector(".phases");
  const texts = labels.map(label => label.textContent);
  const lines = [...svg.querySelectorAll(".s")].map(group => ({ group, label: group.dataset.label,
    points: group.querySelector("polyline").getAttribute("points").split(" ").map(pair => pair.split(",").map(Number)) }));
  const tip = document.createElement("div");
  tip.className = "tip";
  const cursor = document.createElementNS(svg.namespaceURI, "path");
  cursor.setAttribute("class", "cursor");
  let view = [left, right], start = null;
  const digits = value => Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3));
  const place = event => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    return Math.min(right, Math.max(left, at));
  };
  const inView = at => view[0] + (at - left) / (right - left) * (view[1] - view[0]);
  const step = at => x0 + (at - left) / (right - left) * (x1 - x0);
  const show = () => {
    inner.setAttribute("viewBox", `${view[0]} ${top} ${view[1] - view[0]} ${bottom - top}`);
    const whole = view[0] === left && view[1] === right;
    if (phases) phases.style.display = whole ? "" : "none";
    labels.forEach((label, i) => label.textContent = whole ? texts[i] : digits(step(inView(+label.getAttribute("x")))));
  };
  const hover = event => {
    const at = place(event), wanted = inView(at), rows = [];
    let nearest = null;
    for (const { group, label, points } of lines) {
      if (getComputedStyle(group).display === "none") continue;
      let best = points[0];
      for (const point of points) if (Math.abs(point[0] - wanted) < Math.abs(best[0] - wanted)) best = point;
      if (nearest === null || Math.abs(best[0] - wanted) < Math.abs(nearest - wanted)) nearest = best[0];
      rows.push(`${lines.length > 1 ? label + ": " : ""}${digits(y0 + (bottom - best[1]) / (bottom - top) * (y1 - y0))}`);
    }
    if (nearest === null) return;
    tip.textContent = [`${name} ${digits(step(nearest))}`, ...rows].join("\n");
    tip.style.whiteSpace = "pre";
    figure.append(tip);
    const box = svg.getBoundingClientRect(), outer = figure.getBoundingClientRect();
    const x = event.clientX - outer.left;
    tip.style.left = `${x + 14 + tip.offsetWidth > outer.width ? Math.max(0, x - 14 - tip.offsetWidth) : x + 14}px`;
    tip.style.top = `${box.top - outer.top + 14}px`;
    cursor.setAttribute("d", `M${at} ${top}V${bottom}`);
    svg.append(cursor);
  };
  svg.addEventListener("pointermove", hover);
  svg.addEventListener("pointerdown", event => { start = inView(place(event)); });
  svg.addEventListener("pointerup", event => {
    const end = inView(place(event));
    if (start !== null && Math.abs(end - start) > (view[1] - view[0]) / 50) {
      view = [Math.min(start, end), Math.max(start, end)];
      show();
    }
    start = null;
  });
  svg.addEventListener("pointerleave", () => { tip.remove(); cursor.remove(); start = null; });
  svg.addEventListener("dblclick", () => { view = [left, right]; show(); });
}
