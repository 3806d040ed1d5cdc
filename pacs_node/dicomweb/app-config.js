(() => {
  "use strict";
  const root = `${window.location.origin}/dicom-web`;
  const centre = window.REGIS_NODE.centre ? new URL(window.REGIS_NODE.centre).origin : "";
  const key = "regis-image-token";
  const russian = (navigator.language || "").toLowerCase().startsWith("ru");
  const say = (english, russianText) => (russian ? russianText : english);

  // The token travels in the fragment, which no server and no log sees, and leaves the address bar at once.
  const fragment = new URLSearchParams(window.location.hash.slice(1));
  if (fragment.has("token")) {
    sessionStorage.setItem(key, fragment.get("token"));
    fragment.delete("token");
    const rest = fragment.toString();
    history.replaceState(history.state, "", window.location.pathname + window.location.search + (rest ? `#${rest}` : ""));
  }
  const token = () => sessionStorage.getItem(key) || "";

  const isOurs = (address) => {
    const url = new URL(address, window.location.href);
    return url.origin === window.location.origin && url.pathname.startsWith("/dicom-web/");
  };

  // A page of the centre that opened this window may hand over fresh tokens; it is asked a minute before the end.
  const opener = () => window.opener || (window.parent !== window ? window.parent : null);
  let waiting = [];
  window.addEventListener("message", (event) => {
    const fresh = event.data && event.data.type === "regis-image-token" && event.data.token;
    if (fresh && centre && event.origin === centre && event.source === opener()) {
      sessionStorage.setItem(key, String(fresh));
      document.getElementById("regis-notice")?.remove();
      waiting.splice(0).forEach((done) => done());
    }
  });
  const expiry = () => {
    try {
      return JSON.parse(atob(token().split(".")[1].replace(/-/g, "+").replace(/_/g, "/"))).exp * 1000;
    } catch {
      return 0;
    }
  };
  setInterval(() => {
    if (token() && opener() && centre && expiry() - Date.now() < 60000) {
      opener().postMessage({ type: "regis-image-token-wanted" }, centre);
    }
  }, 10000);

  const notice = () => {
    if (document.getElementById("regis-notice")) return;
    const box = document.createElement("div");
    box.id = "regis-notice";
    box.setAttribute("role", "alertdialog");
    box.style.cssText =
      "position:fixed;inset:0;z-index:99999;display:flex;align-items:center;justify-content:center;" +
      "background:rgba(5,8,12,.82);font:18px/1.5 system-ui,sans-serif;color:#e6edf3";
    const card = document.createElement("div");
    card.style.cssText = "max-width:34rem;padding:2rem 2.25rem;background:#161b22;border:1px solid #30363d;border-radius:.75rem";
    const title = document.createElement("h2");
    title.style.cssText = "margin:0 0 .5rem;font-size:1.35rem";
    const text = document.createElement("p");
    text.style.cssText = "margin:0 0 1.25rem;color:#9da7b3";
    const link = document.createElement("a");
    link.style.cssText = "color:#6cb6ff;margin-right:1.5rem";
    if (token()) {
      title.textContent = say("Your permission to see these images has ended", "Разрешение на просмотр закончилось");
      text.textContent = say(
        "Permissions last a few minutes. Go back to the study in the centre and open the images again; nothing is lost.",
        "Оно действует несколько минут. Вернитесь к исследованию в центре и откройте снимки снова: ничего не потеряно.",
      );
    } else {
      title.textContent = say("Please log in to see images", "Чтобы видеть снимки, войдите");
      text.textContent = say(
        "Open the study from the centre, or log in at this node if you work at this site.",
        "Откройте исследование из центра или войдите на этом узле, если вы работаете в этом учреждении.",
      );
    }
    link.href = `/login/?next=${encodeURIComponent(window.location.pathname + window.location.search)}`;
    link.textContent = say("Log in at this node", "Войти на этом узле");
    link.addEventListener("click", () => sessionStorage.removeItem(key));
    card.append(title, text, link);
    if (centre) {
      const back = document.createElement("a");
      back.style.cssText = "color:#6cb6ff";
      back.href = window.REGIS_NODE.centre;
      back.textContent = say("To the centre", "В центр");
      card.append(back);
    }
    box.append(card);
    document.body.append(box);
  };

  // Every way in which the viewer fetches: its DICOMweb client and image loader use XMLHttpRequest, the rest fetch.
  const { open, send, setRequestHeader } = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.open = function (method, url, ...rest) {
    this.regisOurs = isOurs(url);
    return open.call(this, method, url, ...rest);
  };
  XMLHttpRequest.prototype.setRequestHeader = function (name, value) {
    if (this.regisOurs && name.toLowerCase() === "authorization") return undefined;
    return setRequestHeader.call(this, name, value);
  };
  XMLHttpRequest.prototype.send = function (body) {
    if (this.regisOurs) {
      if (token()) setRequestHeader.call(this, "Authorization", `Bearer ${token()}`);
      this.addEventListener("load", () => this.status === 401 && notice());
    }
    return send.call(this, body);
  };
  const plainFetch = window.fetch.bind(window);
  window.fetch = async (input, init) => {
    const request = new Request(input, init);
    if (!isOurs(request.url)) return plainFetch(input, init);
    if (token()) request.headers.set("Authorization", `Bearer ${token()}`);
    const response = await plainFetch(request);
    if (response.status === 401) notice();
    return response;
  };

  // A video element fetches by itself and sends no token, so what is ours is fetched for it.
  const source = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, "src");
  Object.defineProperty(HTMLMediaElement.prototype, "src", {
    ...source,
    set(address) {
      if (!address || !token() || !isOurs(address)) {
        source.set.call(this, address);
        return;
      }
      window
        .fetch(address, { headers: { Accept: "video/*" } })
        .then((response) => (response.ok ? response.blob() : Promise.reject(new Error(`${response.status}`))))
        .then((blob) => source.set.call(this, URL.createObjectURL(blob)))
        .catch(() => this.dispatchEvent(new Event("error")));
    },
  });

  window.config = {
    routerBasename: "/viewer",
    showStudyList: true,
    extensions: [],
    modes: [],
    customizationService: [{ "ohif.tours": { $set: [] } }],
    investigationalUseDialog: { option: "never" },
    maxNumberOfWebWorkers: 3,
    showWarningMessageForCrossOrigin: false,
    showCPUFallbackMessage: true,
    showLoadingIndicator: true,
    strictZSpacingForVolumeViewport: true,
    defaultDataSourceName: "regis",
    dataSources: [
      {
        namespace: "@ohif/extension-default.dataSourcesModule.dicomweb",
        sourceName: "regis",
        configuration: {
          friendlyName: window.REGIS_NODE.name,
          name: "regis",
          qidoRoot: root,
          wadoRoot: root,
          wadoUriRoot: root,
          qidoSupportsIncludeField: true,
          supportsFuzzyMatching: true,
          supportsWildcard: true,
          imageRendering: "wadors",
          thumbnailRendering: "wadors",
          enableStudyLazyLoad: true,
          omitQuotationMarkForMultipartRequest: true,
          bulkDataURI: { enabled: true },
          singlepart: "video",
        },
      },
    ],
  };
})();
