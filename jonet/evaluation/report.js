// Charts: shows the values at the mouse, or at a cursor that the arrow keys move.
document.querySelectorAll(".plot").forEach((plot) => {
  const lines = JSON.parse(plot.dataset.lines), format = (v) => Number(v.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  const cursor = document.createElement("div"), label = document.createElement("span");
  cursor.className = "cursor";
  cursor.hidden = true;
  cursor.append(label);
  plot.append(cursor);
  let place = 0;
  const nearest = (x) => x.reduce((best, v, k) => (Math.abs(v - place) < Math.abs(x[best] - place) ? k : best), 0);
  const read = (fraction) => {
    const longest = lines.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    place = Math.min(1, Math.max(0, fraction));
    const k = nearest(longest.x);
    place = longest.x[k];
    cursor.hidden = false;
    cursor.style.left = `${100 * place}%`;
    cursor.classList.toggle("left", place > 0.6);
    label.textContent = "";
    const rows = [[`${plot.dataset.x} ${format(longest.at[k])}`, ""], ...lines.map((line, n) => [`${line.name} ${format(line.value[nearest(line.x)])}`, `key-${n % 6}`])];
    rows.forEach(([text, key]) => {
      const row = document.createElement("small");
      row.className = key;
      row.textContent = text;
      label.append(row);
    });
  };
  plot.onpointermove = plot.onpointerdown = (event) => {
    const box = plot.getBoundingClientRect();
    read((event.clientX - box.left) / box.width);
  };
  plot.onpointerleave = plot.onblur = () => (cursor.hidden = true);
  plot.onkeydown = (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
    if (!step) return;
    event.preventDefault();
    read(place + step);
  };
});
