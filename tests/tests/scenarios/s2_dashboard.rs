//! The dashboard in a real browser, in front of a real daemon with real traffic. Each scenario leaves pictures in
//! `target/tmp/dashboard`: look at them after a change.

mod access;
mod orders;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::browser::Browser;
use ingress_tests::lab::LabOptions;
use ingress_tests::node::{ADMIN_PORT, STATS_LOGIN};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::PATIENCE;
use serde_json::{Value, json};

/// The daemon on the names of the example, its dashboard behind a password.
fn guarded(s1: &S1) -> Value {
    let mut config = s1.config();
    config["admin"]["http"]["basic_auth"] =
        json!({ "username_env": "INGRESS_STATS_USER", "password_env": "INGRESS_STATS_PASSWORD" });
    config
}

/// The browser on the proxy itself, as if through `ssh -L`, at one view.
fn open(s1: &S1, view: &str) -> Result<Browser> {
    let mut browser = Browser::open(&s1.lab.proxy.ns)?;
    browser.resize(1280, 800)?;
    browser.prefer("light")?;
    let (user, password) = STATS_LOGIN;
    let password = password.replace(' ', "%20");
    browser.go(&format!("http://{user}:{password}@127.0.0.1:{ADMIN_PORT}/dashboard{view}"))?;
    browser.wait_until("the page is live", "document.getElementById('live')?.textContent === 'live'")?;
    Ok(browser)
}

fn picture(browser: &mut Browser, name: &str) -> Result<()> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dashboard");
    std::fs::create_dir_all(&dir)?;
    browser.screenshot(&dir.join(format!("{name}.png")))
}

fn no_complaints(browser: &mut Browser) -> Result<()> {
    let complaints = browser.complaints()?;
    ensure!(complaints.is_empty(), "the page complains: {complaints:#?}");
    Ok(())
}

/// What is shown at a place.
fn text(browser: &mut Browser, selector: &str) -> Result<String> {
    let said = browser.eval(&format!("document.querySelector({selector:?}).innerText"))?;
    Ok(said.as_str().with_context(|| format!("nothing at {selector}"))?.to_owned())
}

fn shows(selector: &str, part: &str) -> String {
    format!("document.querySelector({selector:?})?.innerText.includes({part:?}) === true")
}

const VIEWS: [&str; 6] = ["overview", "routes", "pools", "connections", "sources", "kernel"];

/// Whether a view shows its rows, or says that there are none.
fn drawn(view: &str) -> String {
    format!(
        "!document.getElementById('{view}').hidden && (document.querySelector('#{view} .found')?.innerText !== '' \
         || document.querySelector('#{view} .empty')?.hidden === false)"
    )
}

#[test]
fn dashboard_shows_what_a_client_does_in_every_view_and_scheme() -> Result<()> {
    require!("nginx", "curl", "chromium");
    let mut s1 = S1::example(&LabOptions::default())?;
    let mut config = guarded(&s1);
    for pool in ["app", "demo"] {
        config["pools"][pool]["health"]["interval"] = json!("1s");
    }
    // One name more leads to a pool where nobody answers, on another port of a host that is there.
    config["routes"].as_array_mut().context("routes")?.push(json!({ "sni": "old.example.com", "pool": "old" }));
    let [first, second] = [0, 1].map(|host| s1.lab.backends[host].socket(4443).to_string());
    config["pools"]["old"] = json!({ "backends": [first, second],
        "health": { "type": "tcp", "interval": "1s", "timeout": "1s", "rise": 2, "fall": 3 } });
    let node = s1.node_with(config)?;
    s1.backends[0].publish("big", 256 << 20)?;
    let download = s1.curl("app.example.com").limit_rate(6 << 20).download("/files/big")?;
    for name in ["app.example.com", "demo.example.com", "monitoring.example.com"] {
        s1.curl(name).get("/whoami")?;
    }
    let unknown = s1.curl("unknown.example.com").get("/");
    ensure!(unknown.is_err(), "an unknown name is refused");
    s1.backend("demo")?.stop();

    let mut browser = open(&s1, "#overview")?;
    browser.wait_until("the stopped backend is an alert", &shows("#alerts", "of pool demo is down"))?;
    browser.wait_until("throughput is drawn", "document.querySelectorAll('#throughput .line').length === 2")?;
    s1.backend("demo")?.restart()?;
    browser.wait_until(
        "it is back in the feed",
        &format!("{} && {}", shows("#changes", "up demo/"), shows("#changes", "down demo/")),
    )?;
    let rate = text(&mut browser, "#t-client")?;
    ensure!(rate.contains("Mbit/s"), "a download of 48 Mbit/s shows as {rate}");
    ensure!(text(&mut browser, "#alerts")?.contains("pool old is down"), "a backend that never was up is an alert");

    for (view, seen) in [
        ("connections", "app.example.com"),
        ("routes", "old.example.com"),
        ("pools", "monitoring"),
        ("sources", "ingress.yaml"),
        ("kernel", "unknown_sni"),
        ("overview", "tls"),
    ] {
        browser.eval(&format!("location.hash = '{view}'"))?;
        browser.wait_until(view, &shows(&format!("#{view}"), seen))?;
    }
    for (scheme, width) in [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)] {
        browser.prefer(scheme)?;
        browser.resize(width, 800)?;
        for view in VIEWS {
            browser.eval(&format!("location.hash = '{view}'"))?;
            browser.wait_until(view, &drawn(view))?;
            let wide = browser.eval("document.documentElement.scrollWidth - innerWidth")?;
            ensure!(wide.as_i64().is_some_and(|wide| wide <= 0), "{view} at {width} is too wide by {wide}");
            picture(&mut browser, &format!("{view}-{scheme}-{width}"))?;
        }
    }
    download.wait_for_bytes(1 << 20, PATIENCE)?;
    node.all_in_kernel()?;
    no_complaints(&mut browser)
}

#[test]
fn history_of_a_backend_has_each_change_and_its_error() -> Result<()> {
    require!("nginx", "curl", "chromium");
    let mut s1 = S1::example(&LabOptions::default())?;
    let mut config = guarded(&s1);
    config["pools"]["demo"]["health"] =
        json!({ "type": "tls", "interval": "1s", "timeout": "1s", "rise": 1, "fall": 1 });
    let _node = s1.node_with(config)?;
    let mut browser = open(&s1, "#pools?q=demo")?;
    let state = "#pool-list td .state";
    browser.wait_until("the backend is up", &shows(state, "up"))?;
    s1.backend("demo")?.stop();
    browser.wait_until("it is down", &shows(state, "down"))?;
    s1.backend("demo")?.restart()?;
    browser.wait_until("it is up again", &shows(state, "up"))?;
    browser.eval("document.querySelector('#pool-list details').open = true")?;
    let history = text(&mut browser, "#pool-list .history")?;
    ensure!(history.matches("down").count() == 1 && history.matches("up").count() == 2, "{history}");
    ensure!(history.contains("refused"), "why it was down: {history}");
    picture(&mut browser, "history")?;
    // It stays open while the numbers around it change.
    let asked = browser.eval("performance.getEntriesByType('resource').length")?;
    browser
        .wait_until("two more answers", &format!("performance.getEntriesByType('resource').length > {asked} + 3"))?;
    ensure!(browser.eval("document.querySelector('#pool-list details').open")? == true, "a redraw closed it");
    no_complaints(&mut browser)
}

#[test]
fn ten_thousand_routes_are_found_by_what_is_typed() -> Result<()> {
    require!("chromium");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let mut config = guarded(&s1);
    let backend = s1.lab.backends[0].socket(443).to_string();
    let mut routes = Vec::new();
    let mut pools = serde_json::Map::new();
    for n in 0..10_000 {
        routes.push(json!({ "sni": format!("shop-{n:05}.example.com"), "pool": format!("pool-{n:05}") }));
        pools.insert(format!("pool-{n:05}"), json!({ "backends": [backend] }));
    }
    config["routes"] = routes.into();
    config["pools"] = pools.into();
    let _node = s1.node_with(config)?;

    let mut browser = open(&s1, "#routes")?;
    browser.wait_until("the first page", &shows("#routes .found", "1 to 50 of 10,000 routes"))?;
    picture(&mut browser, "routes-10000")?;
    ensure!(browser.eval("document.querySelectorAll('#routes tbody tr').length")? == 50, "a page is bounded");
    browser.press("/")?;
    browser.type_text("shop-0777 example")?;
    browser.wait_until("what was typed is found", &shows("#routes .found", "10 found in 10,000 routes"))?;
    ensure!(text(&mut browser, "#routes tbody tr")?.contains("shop-07770.example.com"), "the first row");
    ensure!(browser.eval("location.hash")? == "#routes?q=shop-0777+example", "it stands in the address");
    picture(&mut browser, "routes-10000-found")?;

    for what in [
        "overview",
        "routes",
        "routes?q=shop-0777",
        "routes?page=150",
        "pools",
        "pools?q=pool-0777",
        "pools?state=trouble",
    ] {
        let asked = format!(
            "(async () => {{ const began = performance.now(); const answer = await fetch(location.origin + '/dashboard/api/{what}'); const size = (await answer.text()).length; return [Math.round(performance.now() - began), size]; }})()"
        );
        eprintln!("{what}: [milliseconds, bytes] {}", browser.eval(&asked)?);
    }
    let began = Instant::now();
    browser.eval("location.hash = 'pools?q=pool-04242'")?;
    browser.wait_until("a pool among as many", &shows("#pools .found", "1 found in 10,000 pools"))?;
    eprintln!("from a changed address to the pool on the page: {:?}", began.elapsed());

    browser.eval("location.hash = 'routes?page=199'")?;
    browser.wait_until("the last page", &shows("#routes .found", "9,951 to 10,000 of 10,000"))?;
    ensure!(
        browser.eval("document.querySelector('#routes .pager button:last-child').disabled")? == true,
        "no next page"
    );
    browser.eval("document.querySelector('#routes .pager button').click()")?;
    browser.wait_until("the page before", &shows("#routes .found", "9,901 to 9,950 of 10,000"))?;
    browser.eval("history.back()")?;
    browser.wait_until("and back", &shows("#routes .found", "9,951 to 10,000 of 10,000"))?;
    no_complaints(&mut browser)
}

#[test]
fn dashboard_says_since_when_the_daemon_is_silent() -> Result<()> {
    require!("chromium");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let mut node = s1.node_with(guarded(&s1))?;
    let mut browser = open(&s1, "#overview")?;
    node.kill9()?;
    let silence = "!document.getElementById('silence').hidden";
    browser.wait_until("silence is told", &format!("{silence} && {}", shows("#silence", "has not answered since")))?;
    picture(&mut browser, "silence")?;
    node.launch()?;
    browser.wait_until("an answer ends it", &format!("!({silence}) && {}", shows("#live", "live")))?;
    Ok(())
}

#[test]
fn a_hidden_tab_asks_for_nothing() -> Result<()> {
    require!("chromium");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let _node = s1.node_with(guarded(&s1))?;
    let mut browser = open(&s1, "#overview")?;
    let hide = |hidden| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }});
             document.dispatchEvent(new Event('visibilitychange'));
             performance.clearResourceTimings();
             performance.setResourceTimingBufferSize(1000)"
        )
    };
    let asked = "performance.getEntriesByType('resource').length";
    browser.eval(&hide(true))?;
    browser.pass(Duration::from_secs(60))?;
    let hidden = browser.eval(asked)?.as_u64().context("a number")?;
    ensure!(hidden <= 1, "{hidden} requests in a minute in which nobody looked");
    browser.eval(&hide(false))?;
    browser.pass(Duration::from_secs(60))?;
    let shown = browser.eval(asked)?.as_u64().context("a number")?;
    ensure!((5..=32).contains(&shown), "{shown} requests in a minute in which somebody looked");
    Ok(())
}
