// For browsers that know no modules, or not these, as in old televisions: Motion JPEG, which any of them shows, asked for again
// when it ends. In the JavaScript of their time.
(function () {
  var PATIENCE = 8000; // ms until the player must have begun
  var ASK = 30000; // ms between questions for the screen's view
  function begin() {
    if (window.player) return;
    var picture = document.createElement("img");
    var video = document.getElementById("video");
    picture.alt = "";
    function load() {
      picture.src = "video.mjpeg?" + new Date().getTime();
    }
    function asked(key) {
      var found = new RegExp("[?&]" + key + "=([^&]*)").exec(location.search);
      return found ? decodeURIComponent(found[1]) : "";
    }
    // How the screen of this name shows the picture; asking says that it is there.
    function frame() {
      var request = new XMLHttpRequest();
      request.onload = function () {
        var view = request.status === 200 ? JSON.parse(request.responseText) : {};
        var fit = asked("fit") || view.fit;
        var rotate = asked("rotate") || view.rotate;
        document.body.className = "screen" + (fit ? " " + fit : "") + (rotate ? " rotate-" + rotate : "");
      };
      request.open("GET", "api/screens/" + encodeURIComponent(asked("screen") || "unnamed") + "/view?" + new Date().getTime());
      request.send();
    }
    picture.onerror = function () {
      setTimeout(load, 3000);
    };
    video.parentNode.replaceChild(picture, video);
    load();
    frame();
    setInterval(frame, ASK);
  }
  setTimeout(begin, "noModule" in document.createElement("script") ? PATIENCE : 0);
})();
