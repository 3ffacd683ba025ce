// The 3D viewer: the parts of one shape side by side, rotated together. WebGL on one canvas behind a grid of panels.
(() => {
  const shapes = JSON.parse(document.getElementById("shapes").textContent);
  const section = document.getElementById("viewer");
  if (!section) return;
  const find = (what) => section.querySelector(what);
  const stage = find(".stage"), canvas = find("canvas"), panels = find(".panels"), select = find("select");
  const errors = find(".errors"), box = errors.querySelector("input");
  const buttons = [...document.querySelectorAll(".rotate")];
  document.querySelectorAll('#viewer, .rotate, a[href="#viewer"]').forEach((element) => (element.hidden = false));
  let gl = canvas.getContext("webgl", { antialias: true });
  const flat = () => (find(".hint").textContent = "WebGL is not available, so these are still images.");
  if (!gl) flat();

  const COLORS = { ground_truth: [0.56, 0.45, 0.35], predicted: [0.16, 0.38, 0.72], input: [0.34, 0.36, 0.4], train: [0.36, 0.44, 0.34] };
  const START = { yaw: 0.611, pitch: 0.384, zoom: 1 };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let view = { ...START }, spinning = !still, visible = true, current = -1, drawn = [], requested = false;

  // Unpacking of the meshes in the page: base64 of 16-bit coordinates, faces and 8-bit errors, see figures.pack.

  const unpack = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

  function prepare(panel) {
    if (!panel.v) return null;
    const places = Float32Array.from(unpack(panel.v, Uint16Array), (q) => q / 32767.5 - 1);
    const values = panel.e && unpack(panel.e, Uint8Array);
    let radius = 0, low = [9, 9, 9], high = [-9, -9, -9];
    for (let k = 0; k < places.length; k += 3) {
      radius = Math.max(radius, Math.hypot(places[k], places[k + 1], places[k + 2]));
      for (let c = 0; c < 3; c++) {
        low[c] = Math.min(low[c], places[k + c]);
        high[c] = Math.max(high[c], places[k + c]);
      }
    }
    const faces = panel.f && unpack(panel.f, panel.wide ? Uint32Array : Uint16Array);
    const corners = faces ? cornered(places, faces, values) : dotted(places);
    const buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, corners, gl.STATIC_DRAW);
    return { buffer, count: corners.length / 7, points: !faces, radius, low, high, colored: Boolean(values) };
  }

  // Points as rows (place, normal, value) of a buffer without faces.
  function dotted(places) {
    const rows = new Float32Array((places.length / 3) * 7);
    for (let k = 0; k < places.length / 3; k++) rows.set([places[3 * k], places[3 * k + 1], places[3 * k + 2], 0, 0, 1, 0], 7 * k);
    return rows;
  }

  // Rows (place, normal, value) for every corner of every face. Normals are smooth where faces meet at less than 40
  // degrees (cos 40° = 0.77), and sharp elsewhere.
  function cornered(places, faces, values) {
    const count = faces.length / 3, normals = new Float32Array(faces.length), areas = new Float32Array(count);
    const starts = new Uint32Array(places.length / 3 + 1), around = new Uint32Array(faces.length);
    for (let f = 0; f < count; f++) {
      const [a, b, c] = [0, 1, 2].map((k) => 3 * faces[3 * f + k]);
      const u = [0, 1, 2].map((k) => places[b + k] - places[a + k]), v = [0, 1, 2].map((k) => places[c + k] - places[a + k]);
      const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
      areas[f] = Math.hypot(...n);
      for (let k = 0; k < 3; k++) normals[3 * f + k] = n[k] / (areas[f] || 1);
    }
    for (const vertex of faces) starts[vertex + 1]++;
    for (let k = 1; k < starts.length; k++) starts[k] += starts[k - 1];
    const next = starts.slice();
    faces.forEach((vertex, k) => (around[next[vertex]++] = Math.floor(k / 3)));
    const rows = new Float32Array(faces.length * 7);
    for (let k = 0; k < faces.length; k++) {
      const vertex = faces[k], face = 3 * Math.floor(k / 3);
      let x = 0, y = 0, z = 0;
      for (let j = starts[vertex]; j < starts[vertex + 1]; j++) {
        const f = 3 * around[j], area = areas[around[j]];
        const alike = normals[f] * normals[face] + normals[f + 1] * normals[face + 1] + normals[f + 2] * normals[face + 2];
        if (alike > 0.77) (x += area * normals[f]), (y += area * normals[f + 1]), (z += area * normals[f + 2]);
      }
      const length = Math.hypot(x, y, z) || 1;
      rows.set([places[3 * vertex], places[3 * vertex + 1], places[3 * vertex + 2], x / length, y / length, z / length,
        values ? values[vertex] / 255 : 0], 7 * k);
    }
    return rows;
  }

  // Drawing: every mesh in the square of its own panel, with a soft shadow on the ground below it.

  const program = (vertex, fragment) => {
    const linked = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, "precision highp float;" + fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(linked, shader);
    }
    ["place", "normal", "value"].forEach((name, k) => gl.bindAttribLocation(linked, k, name));
    gl.linkProgram(linked);
    return linked;
  };
  const MOVE = `attribute vec3 place; uniform mat3 turn; uniform float focal; uniform float dot_;
    vec4 see(vec3 p) { vec3 q = turn * p; float d = 4.9 - q.z; return vec4(focal * q.xy, 2.0 * d - 7.5, d); }`;
  const solid = gl && program(`${MOVE} attribute vec3 normal; attribute float value; varying vec3 n; varying float e;
    void main() { n = turn * normal; e = value; gl_Position = see(place); gl_PointSize = dot_; }`,
    `varying vec3 n; varying float e; uniform vec3 color, up; uniform float colored, points;
    vec3 scale(float t) { vec3 a = vec3(.40, .47, .54), b = vec3(1., .52, .04), c = vec3(.60, .00, .09);
      return t < .5 ? mix(a, b, 2. * t) : mix(b, c, 2. * t - 1.); }
    void main() {
      vec3 N = normalize(gl_FrontFacing ? n : -n), L = normalize(vec3(-.45, .9, .45)), V = vec3(0., 0., 1.);
      if (points > .5) { vec2 s = 2. * gl_PointCoord - 1.; float r = dot(s, s); if (r > 1.) discard; N = vec3(s.x, -s.y, sqrt(1. - r)); }
      vec3 albedo = mix(color, scale(e), colored);
      float light = 1.05 * max(dot(N, L), 0.) + .3 + .12 * dot(N, up) + .16 * max(dot(N, normalize(vec3(1., 0., .3))), 0.);
      float gloss = .06 * pow(max(dot(N, normalize(L + V)), 0.), 40.) + .12 * pow(1. - clamp(N.z, 0., 1.), 5.);
      gl_FragColor = vec4(pow(clamp(albedo * light + gloss, 0., 1.), vec3(1. / 2.2)), 1.); }`);
  const ground = gl && program(`${MOVE} uniform vec3 low, high; varying vec2 at;
    void main() { vec3 half_ = (high - low) / 2.; at = place.xz * (half_.xz + .4); vec3 m = (low + high) / 2.;
      gl_Position = see(vec3(m.x + at.x, low.y, m.z + at.y)); }`,
    `varying vec2 at; uniform vec3 low, high; void main() {
      vec2 d = max(abs(at) - .6 * (high - low).xz / 2., 0.); gl_FragColor = vec4(0., 0., 0., .2 * exp(-dot(d, d) / .025)); }`);
  const square = gl && gl.createBuffer();
  if (gl) {
    gl.bindBuffer(gl.ARRAY_BUFFER, square);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, 0, -1, 1, 0, -1, -1, 0, 1, 1, 0, 1]), gl.STATIC_DRAW);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.enable(gl.SCISSOR_TEST);
  }

  function draw() {
    requested = false;
    if (!gl || !drawn.length) return;
    if (spinning && visible) (view.yaw += 0.004), requestDraw();
    const dense = Math.min(devicePixelRatio || 1, 2), whole = canvas.getBoundingClientRect();
    const size = [Math.round(whole.width * dense), Math.round(whole.height * dense)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    gl.scissor(0, 0, ...size);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const [sy, cy, sp, cp] = [Math.sin(view.yaw), Math.cos(view.yaw), Math.sin(view.pitch), Math.cos(view.pitch)];
    const turn = [cy, -sp * sy, cp * sy, 0, cp, sp, -sy, -sp * cy, cp * cy]; // pitch after yaw, column by column
    const solids = drawn.filter((one) => one.mesh);
    const radius = Math.max(...solids.map((one) => one.mesh.radius));
    const groundTruth = solids.find((one) => one.kind === "ground_truth");
    for (const { mesh, kind, place } of solids) {
      const spot = place.getBoundingClientRect(), side = Math.min(spot.width, spot.height) * dense;
      const x = (spot.left + spot.width / 2 - whole.left) * dense - side / 2;
      const y = (whole.bottom - spot.top - spot.height / 2) * dense - side / 2;
      gl.viewport(x, y, side, side);
      gl.scissor(x, y, side, side);
      for (const which of view.pitch > 0.02 ? [ground, solid] : [solid]) {
        const set = (name) => gl.getUniformLocation(which, name);
        gl.useProgram(which);
        gl.uniformMatrix3fv(set("turn"), false, turn);
        gl.uniform1f(set("focal"), (4.6 / radius) * view.zoom);
        gl.bindBuffer(gl.ARRAY_BUFFER, which === ground ? square : mesh.buffer);
        for (let k = 0; k < 3; k++) gl.disableVertexAttribArray(k);
        gl.enableVertexAttribArray(0);
        if (which === ground) {
          gl.disable(gl.DEPTH_TEST);
          gl.enable(gl.BLEND);
          gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 12, 0);
          gl.uniform3f(set("low"), mesh.low[0], (kind === "predicted" && groundTruth ? groundTruth.mesh : mesh).low[1], mesh.low[2]);
          gl.uniform3fv(set("high"), mesh.high);
          gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
          continue;
        }
        gl.disable(gl.BLEND);
        gl.enable(gl.DEPTH_TEST);
        gl.enableVertexAttribArray(1);
        gl.enableVertexAttribArray(2);
        gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 28, 0);
        gl.vertexAttribPointer(1, 3, gl.FLOAT, false, 28, 12);
        gl.vertexAttribPointer(2, 1, gl.FLOAT, false, 28, 24);
        gl.uniform3fv(set("color"), COLORS[kind]);
        gl.uniform3f(set("up"), 0, cp, sp);
        gl.uniform1f(set("colored"), mesh.colored && box.checked ? 1 : 0);
        gl.uniform1f(set("points"), mesh.points ? 1 : 0);
        gl.uniform1f(set("dot_"), Math.max(3, side * 0.016 * view.zoom));
        gl.drawArrays(mesh.points ? gl.POINTS : gl.TRIANGLES, 0, mesh.count);
      }
    }
  }

  // At most one drawing per frame, however many events ask for one.
  function requestDraw() {
    if (!requested) (requested = true), requestAnimationFrame(draw);
  }

  // Selection of the shape

  function show(index) {
    current = (index + shapes.length) % shapes.length;
    select.value = current;
    drawn.forEach((one) => gl && one.mesh && gl.deleteBuffer(one.mesh.buffer));
    const card = buttons[current].closest(".row"), pictures = card.querySelectorAll(".part");
    panels.textContent = "";
    panels.style.setProperty("--count", shapes[current].panels.length);
    drawn = shapes[current].panels.map((panel) => {
      const figure = document.createElement("figure"), place = document.createElement("div"), caption = document.createElement("figcaption");
      figure.className = panel.kind;
      caption.textContent = panel.caption;
      figure.append(place, caption);
      panels.append(figure);
      const mesh = gl && prepare(panel);
      if (!mesh) place.append(pictures[panel.image].firstElementChild.cloneNode(true));
      return { mesh, kind: panel.kind, place };
    });
    errors.hidden = !gl || !shapes[current].panels.some((panel) => panel.e);
    requestDraw();
  }

  shapes.forEach((shape, k) => select.add(new Option(shape.rank ? `${shape.name} (${shape.rank})` : shape.name, k)));
  select.onchange = () => show(+select.value);
  section.querySelectorAll("[data-step]").forEach((button) => (button.onclick = () => show(current + +button.dataset.step)));
  find(".reset").onclick = () => ((view = { ...START }), (spinning = false), requestDraw());
  box.onchange = requestDraw;
  buttons.forEach((button) => (button.onclick = () => {
    show(+button.dataset.shape);
    section.scrollIntoView();
    stage.focus({ preventScroll: true });
  }));

  // Rotation and zoom by mouse, touch and keys

  const fingers = new Map();
  const zoom = (factor) => ((view.zoom = Math.min(8, Math.max(0.4, view.zoom * factor))), requestDraw());
  const turn = (x, y) => {
    spinning = false;
    view.yaw += x;
    view.pitch = Math.min(1.57, Math.max(-1.57, view.pitch + y));
    requestDraw();
  };
  stage.onpointerdown = (event) => {
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    stage.setPointerCapture(event.pointerId);
    spinning = false;
  };
  stage.onpointermove = (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY], spread = () => {
      const [a, b] = [...fingers.values()];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    };
    if (fingers.size === 1) turn(-0.009 * (now[0] - before[0]), 0.009 * (now[1] - before[1]));
    const wide = fingers.size === 2 && spread();
    fingers.set(event.pointerId, now);
    if (fingers.size === 2) zoom(spread() / (wide || 1));
  };
  stage.onpointerup = stage.onpointercancel = (event) => fingers.delete(event.pointerId);
  stage.addEventListener("wheel", (event) => {
    if (document.activeElement !== stage) return; // the page scrolls until the stage was clicked
    event.preventDefault();
    zoom(Math.exp(-0.0015 * event.deltaY));
  }, { passive: false });
  const keys = {
    ArrowLeft: () => turn(0.15, 0), ArrowRight: () => turn(-0.15, 0), ArrowUp: () => turn(0, -0.15), ArrowDown: () => turn(0, 0.15),
    "+": () => zoom(1.15), "=": () => zoom(1.15), "-": () => zoom(1 / 1.15), 0: () => find(".reset").click(),
    "[": () => show(current - 1), "]": () => show(current + 1),
  };
  stage.onkeydown = (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  };
  new ResizeObserver(requestDraw).observe(stage);
  new IntersectionObserver(([entry]) => ((visible = entry.isIntersecting), requestDraw())).observe(stage);
  canvas.addEventListener("webglcontextlost", () => ((gl = null), flat(), show(current)));
  show(0);
})();
