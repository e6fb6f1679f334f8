// Turn a solid by hand. The viewer and the mesh are loaded when somebody asks for them, as scripts: a page opened from
// disk may not fetch files. Where there is no WebGL the picture stays, and a sentence says why.
(() => {
  "use strict";
  const meshes = new Map();
  window.ttdMesh = (name, base64) => meshes.set(name, base64);

  const loading = new Map();
  const load = (address) => {
    if (!loading.has(address)) {
      loading.set(address, new Promise((done, failed) => {
        const script = document.createElement("script");
        script.src = address;
        script.onload = done;
        script.onerror = () => {
          loading.delete(address);
          failed(new Error(`${address} is not there`));
        };
        document.head.append(script);
      }));
    }
    return loading.get(address);
  };

  let able = null;
  const hasWebGL = () => {
    if (able === null) {
      const context = document.createElement("canvas").getContext("webgl2");
      able = context !== null;
      context?.getExtension("WEBGL_lose_context")?.loseContext();
    }
    return able;
  };

  const call = (solid, button, words) => {
    button.textContent = words;
    button.setAttribute("aria-label", `${words}: ${solid.dataset.alt}`);
  };

  const stop = (solid, button, sentence) => {
    solid.querySelector("model-viewer")?.remove();
    solid.classList.remove("turning", "waiting");
    solid.querySelector(".says").textContent = sentence;
    call(solid, button, "turn it");
  };

  const start = async (solid, button) => {
    if (!hasWebGL()) return stop(solid, button, "This browser offers no WebGL: the picture stays.");
    solid.classList.add("waiting");
    const name = solid.dataset.mesh;
    try {
      await Promise.all([load("assets/model-viewer-umd.min.js"), load(`meshes/${encodeURIComponent(name)}.js`)]);
      const viewer = document.createElement("model-viewer");
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
      viewer.setAttribute("alt", solid.dataset.alt);
      viewer.setAttribute("camera-controls", "");
      viewer.setAttribute("touch-action", "pan-y");
      viewer.setAttribute("interaction-prompt", "none");
      viewer.setAttribute("shadow-intensity", "0.6");
      if (!still) viewer.setAttribute("auto-rotate", "");
      viewer.addEventListener("load", () => {
        call(solid, button, "show the picture");
        solid.classList.remove("waiting");
        solid.querySelector(".says").textContent = "Drag or use the arrow keys to turn.";
      });
      viewer.addEventListener("error", () => stop(solid, button, "The solid could not be drawn: the picture stays."));
      viewer.src = `data:model/gltf-binary;base64,${meshes.get(name)}`;
      solid.querySelector(".views").after(viewer);
      solid.classList.add("turning");
    } catch (error) {
      stop(solid, button, `${error.message}: the picture stays.`);
    }
  };

  for (const button of document.querySelectorAll(".solid button")) {
    const solid = button.closest(".solid");
    button.hidden = false;
    button.addEventListener("click", () => {
      if (solid.classList.contains("waiting")) return;
      if (solid.classList.contains("turning")) stop(solid, button, "");
      else start(solid, button);
    });
  }
})();
