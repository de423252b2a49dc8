//! The report as a page, in a real browser without network: drawn, complete, silent on the console, asking nobody for anything.
//! Chromium renders the report of a real run, headless and in an empty network namespace.
//! Where there is no browser it fails. KTCW_NO_BROWSER=1 leaves the check out, which is said; in CI nothing is left out.

use crate::cluster::Cluster;
use crate::injector::Native;
use crate::runs::{Steady, drill, kept, steadily};
use ktcw_vm::drill::report::{Report, html};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Seconds that a browser may take to start, render and end.
const PATIENCE: &str = "90";
/// Asks the rendered page what it is, and writes the answer where `--dump-dom` shows it. Added to a copy: the page has no script.
const PROBE: &str = r##"<script>addEventListener("load", () => {
  const box = (s) => { const r = document.querySelector(s).getBoundingClientRect(); return [r.width, r.height]; };
  const shown = [...document.querySelectorAll("svg rect, svg path")].filter((e) => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; });
  const lanes = [...document.querySelectorAll("#timeline rect.leader, #timeline rect.follower")].filter((e) => e.getBoundingClientRect().width > 0);
  const seen = { timeline: box("#timeline"), figures: box("#figures"), checks: box("#checks"), verdict: document.querySelector("#verdict").innerText,
    shown: shown.length, lanes: lanes.length, svgs: document.querySelectorAll("svg").length,
    wide: document.documentElement.scrollWidth <= innerWidth, rows: document.querySelectorAll("#checks tbody tr").length,
    asked: performance.getEntriesByType("resource").map((e) => e.name), colour: getComputedStyle(document.querySelector("rect.leader")).fill };
  const pre = document.createElement("pre"); pre.id = "seen"; pre.textContent = JSON.stringify(seen); document.body.append(pre);
});</script>"##;

/// `None` where nothing is to be checked, which has been said then.
fn browser() -> Option<&'static str> {
    let said = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let found = BROWSERS.into_iter().find(|name| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|directory| directory.join(name).is_file())
    });
    let chosen = chosen(found, said("KTCW_NO_BROWSER"), said("CI")).unwrap_or_else(|why| panic!("{why}"));
    if chosen.is_none() {
        eprintln!("NOT CHECKED: a drill's page in a browser (KTCW_NO_BROWSER is set)");
    }
    chosen
}

/// The browser that is there. `None`: somebody wants nothing checked with one, and this is not CI. That there is none is a failure,
/// not a reason to pass.
fn chosen(found: Option<&'static str>, declined: bool, ci: bool) -> Result<Option<&'static str>, &'static str> {
    match found {
        _ if declined && !ci => Ok(None),
        Some(browser) => Ok(Some(browser)),
        None if ci => Err("CI needs a browser: setup/install.sh browser (package chromium)"),
        None => Err("there is no browser: setup/install.sh browser (package chromium), or KTCW_NO_BROWSER=1 to check no page"),
    }
}

/// Opens a file and ends. In a namespace of its own, whose only interface is down: what it asked for would fail and be logged.
fn opened(browser: &str, profile: &Path, page: &Path, more: &[String]) -> Output {
    let mut command = Command::new("unshare");
    command.args(["--net", "timeout", "--kill-after=5", PATIENCE, browser]);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]);
    command.args([
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-default-apps",
        "--disable-dev-shm-usage",
    ]);
    command.args(["--enable-logging=stderr", "--window-size=1200,1600", "--virtual-time-budget=2000"]);
    command.arg(format!("--user-data-dir={}", profile.display())).args(more).arg(format!("file://{}", page.display()));
    command.stdin(Stdio::null()).output().expect("unshare runs")
}

/// Lines that a page writes to its console, of any level.
fn console(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("CONSOLE")).collect()
}

/// What the page asked of a network, from the browser's own log of that. Its own questions (the time of day, updates) have no
/// origin, and find no network here.
fn asked(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).expect("the browser's network log");
    let log: serde_json::Value = serde_json::from_str(&text).expect("a whole log");
    let params = log["events"].as_array().expect("events").iter().map(|event| &event["params"]);
    let of_page = params.filter(|params| params["initiator"].as_str().is_some_and(|initiator| initiator != "not an origin"));
    let urls = of_page.filter_map(|params| params["url"].as_str());
    let remote = |url: &&str| ["http:", "https:", "ws:", "wss:"].iter().any(|scheme| url.starts_with(scheme));
    urls.filter(remote).map(str::to_owned).collect()
}

#[test]
fn a_report_is_drawn_without_a_word_on_the_console_or_to_the_network() {
    let Some(browser) = browser() else { return };
    let cluster = Arc::new(Cluster::start(3));
    let native = Native::new(cluster.clone());
    let Steady { record, judgement, .. } =
        cluster.block_on(async { steadily(&drill("leader-kill"), &cluster.site(), &native, &cluster).await });
    let page = html(&Report::new(record)).expect("a page");
    let place = tempfile::tempdir().expect("a directory");
    let file = |name: &str| -> PathBuf { place.path().join(name) };
    let kept = kept();

    // As it is: silent, and alone.
    std::fs::write(file("report.html"), &page).expect("written");
    std::fs::write(kept.join("drill-report.html"), &page).expect("written");
    let (picture, network) = (kept.join("drill-report.png"), file("network.json"));
    let _ = std::fs::remove_file(&picture);
    let more = [format!("--screenshot={}", picture.display()), format!("--log-net-log={}", network.display())];
    let out = opened(browser, &file("profile"), &file("report.html"), &more);
    let log = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{log}");
    assert_eq!(console(&log), Vec::<&str>::new());
    assert_eq!(asked(&network), Vec::<String>::new());
    let png = std::fs::read(&picture).expect("a picture");
    assert!(png.starts_with(b"\x89PNG") && png.len() > 20_000, "{} bytes", png.len());

    // With a question in it: everything is there, and has a size.
    std::fs::write(file("asked.html"), page.replace("</body>", &format!("{PROBE}</body>"))).expect("written");
    let out = opened(browser, &file("profile"), &file("asked.html"), &["--dump-dom".to_owned()]);
    let (dom, log) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(console(&log), Vec::<&str>::new());
    let answer = dom.split("<pre id=\"seen\">").nth(1).and_then(|rest| rest.split("</pre>").next());
    let seen: serde_json::Value =
        serde_json::from_str(answer.unwrap_or_else(|| panic!("the page was not loaded:\n{log}"))).expect("json");
    for what in ["timeline", "figures", "checks"] {
        assert!(seen[what][0].as_f64() > Some(600.0) && seen[what][1].as_f64() > Some(80.0), "{what}: {seen}");
    }
    assert_eq!(seen["rows"].as_u64(), Some(judgement.checks.len() as u64), "{seen}");
    assert_eq!(seen["svgs"], 2, "{seen}");
    // Three members, one of which was away for a while, and another led.
    assert!(seen["lanes"].as_u64() >= Some(5) && seen["shown"].as_u64() >= Some(40), "{seen}");
    assert_eq!(seen["wide"], true, "it fits the window: {seen}");
    assert_eq!(seen["asked"], serde_json::json!([]), "{seen}");
    assert_ne!(seen["colour"], "rgb(0, 0, 0)", "the style sheet applies: {seen}");
    assert_eq!(seen["verdict"].as_str().map(str::to_lowercase).as_deref(), Some("pass"), "{seen}");
    eprintln!("page: {seen} → {}", picture.display());
}

/// The check must be able to fail: a page that complains and asks is found out.
#[test]
fn a_page_that_complains_or_asks_is_found_out() {
    let Some(browser) = browser() else { return };
    let place = tempfile::tempdir().expect("a directory");
    let (page, network) = (place.path().join("bad.html"), place.path().join("network.json"));
    let bad = "<!doctype html><title>bad</title><img src=\"http://192.0.2.1/x.png\"><script>console.error(\"wrong\"); undefined.x;</script>";
    std::fs::write(&page, bad).expect("written");
    let more = ["--dump-dom".to_owned(), format!("--log-net-log={}", network.display())];
    let out = opened(browser, &place.path().join("profile"), &page, &more);
    let log = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(console(&log).iter().any(|line| line.contains("wrong")), "{log}");
    assert!(asked(&network).iter().any(|url| url == "http://192.0.2.1/x.png"), "{:?}", asked(&network));
}

#[test]
fn without_a_browser_it_fails_unless_somebody_wants_no_check() {
    assert_eq!(chosen(Some("chromium"), false, false), Ok(Some("chromium")));
    assert!(chosen(None, false, false).expect_err("nothing was checked").contains("KTCW_NO_BROWSER=1"));
    assert_eq!(chosen(None, true, false), Ok(None));
    assert_eq!(chosen(Some("chromium"), true, false), Ok(None), "one that cannot be used here");
    // CI checks everything, whatever it is told.
    assert_eq!(chosen(Some("chromium"), true, true), Ok(Some("chromium")));
    assert!(chosen(None, true, true).is_err() && chosen(None, false, true).is_err());
}

/// What the check asks for is what `make test` installs.
#[test]
fn make_test_installs_a_browser_that_is_looked_for() {
    let needs = format!("browser cmd:{} chromium", BROWSERS.join(","));
    assert!(include_str!("../../setup/install.sh").lines().any(|line| line == needs), "{needs}");
    let (_, recipe) = include_str!("../../Makefile").split_once("\ntest: ").expect("make test");
    let installs = recipe.lines().nth(1).expect("its first line");
    assert!(installs.contains("setup/install.sh") && installs.contains("$(if $(KTCW_NO_BROWSER),,browser)"), "{installs}");
}
