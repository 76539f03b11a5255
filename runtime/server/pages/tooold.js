// For browsers that know no modules: pages of buttons have nothing to offer them but a sentence.
document.getElementById("told").textContent = "This browser is too old for this page. Please use a newer one.";
