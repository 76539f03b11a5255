// For browsers that know no modules, as in old televisions: Motion JPEG, which any of them shows, asked for again when it ends.
// In the JavaScript of their time.
(function () {
  var picture = document.createElement("img");
  var video = document.getElementById("video");
  picture.alt = "";
  function load() {
    picture.src = "video.mjpeg?" + new Date().getTime();
  }
  picture.onerror = function () {
    setTimeout(load, 3000);
  };
  video.parentNode.replaceChild(picture, video);
  load();
})();
