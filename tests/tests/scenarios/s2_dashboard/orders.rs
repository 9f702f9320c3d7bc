//! Ready, drain and maintenance from the dashboard.

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::LabOptions;
use ingress_tests::node::{Node, STATS_LOGIN};
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::PATIENCE;
use serde_json::{Value, json};

use super::{guarded, no_complaints, open, picture, shows, text};

/// A backend's row in the view of its pool, and a button there.
fn button(backend: &str, word: &str) -> String {
    format!(
        "Array.from(document.querySelectorAll('#pool-list tbody tr')).find((tr) => tr.cells[0].innerText.startsWith({backend:?}))\
         ?.querySelectorAll('.orders button')[{}]",
        ["Ready", "Drain", "Maint"].iter().position(|known| *known == word).unwrap_or_default()
    )
}

#[test]
fn a_backend_is_drained_by_a_click_and_the_log_says_by_whom() -> Result<()> {
    require!("nginx", "curl", "chromium");
    let s1 = S1::example(&LabOptions::default())?;
    let mut config = guarded(&s1);
    let backends = [0, 1].map(|host| s1.lab.backends[host].socket(443).to_string());
    config["pools"]["app"]["backends"] = json!(backends);
    let node = s1.node_with(config)?;
    let mut browser = open(&s1, "#pools?q=app")?;
    let other = &backends[1];
    browser.wait_until("its row", &format!("{} !== undefined", button(other, "Drain")))?;
    browser.eval(&format!("{}.click()", button(other, "Drain")))?;
    browser.wait_until("it is done", &shows("#said", "is drained"))?;
    browser.wait_until(
        "the row says so",
        &format!("{}.getAttribute('aria-pressed') === 'true'", button(other, "Drain")),
    )?;
    picture(&mut browser, "drained")?;
    // Its certificate has other names: a request that went there would fail.
    for _ in 0..6 {
        s1.curl("app.example.com").get("/whoami")?;
    }
    let said =
        node.wait_for_log("who did it", |line| line["by"].as_str().is_some_and(|by| by.contains("dashboard")))?;
    ensure!(said["by"] == format!("{} (127.0.0.1, dashboard)", STATS_LOGIN.0), "{said}");

    s1.backends[0].publish("big", 64 << 20)?;
    let download = s1.curl("app.example.com").download("/files/big")?;
    download.wait_for_bytes(1 << 20, PATIENCE)?;
    download.hold();
    browser.wait_until(
        "its open connection is shown",
        &format!("{}.closest('tr').cells[4].innerText.trim() === '1'", button(&backends[0], "Maint")),
    )?;
    browser.eval(&format!("{}.click()", button(&backends[0], "Maint")))?;
    browser.wait_until("the page asks first", "document.getElementById('sure').open")?;
    let question = text(&mut browser, "#sure")?;
    ensure!(
        question.contains("1 open connection is cut") && question.contains("No other backend of pool app"),
        "{question}"
    );
    picture(&mut browser, "maintenance")?;
    browser.press("Enter")?;
    browser.wait_until("the first button leaves it", "!document.getElementById('sure').open")?;
    ensure!(said_of(&node, "app", 0)?.is_null() && said_of(&node, "app", 1)? == "drain", "as before");
    browser.eval(&format!("{}.click()", button(&backends[0], "Maint")))?;
    browser.wait_until("the page asks again", "document.getElementById('sure').open")?;
    browser.eval("document.getElementById('sure-yes').click()")?;
    browser.wait_until(
        "it is in maintenance",
        &format!("{}.getAttribute('aria-pressed') === 'true'", button(&backends[0], "Maint")),
    )?;
    ensure!(said_of(&node, "app", 0)? == "maint", "the daemon knows");
    ensure!(download.finish(PATIENCE).is_err(), "maintenance cuts");
    browser.eval(&format!("{}.click()", button(&backends[0], "Ready")))?;
    browser.wait_until(
        "it is back",
        &format!("{}.getAttribute('aria-pressed') === 'true'", button(&backends[0], "Ready")),
    )?;
    s1.curl("app.example.com").get("/whoami")?;
    no_complaints(&mut browser)
}

#[test]
fn an_order_without_the_token_of_the_page_is_refused() -> Result<()> {
    require!("chromium");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let node = s1.node_with(guarded(&s1))?;
    let mut browser = open(&s1, "#overview")?;
    let backend = s1.lab.backends[0].socket(443).to_string();
    let status = browser.eval(&format!(
        "fetch(location.origin + '/dashboard/api/pools/web/backends/' + encodeURIComponent('{backend}'), {{ method: 'POST', \
         headers: {{ 'Content-Type': 'application/json' }}, body: JSON.stringify({{ state: 'drain' }}) }}).then((a) => a.status)"
    ))?;
    ensure!(status == 403, "{status}");
    let refused =
        node.wait_for_log("the order was refused", |line| line["message"] == "an order on the dashboard is refused")?;
    ensure!(refused["why"].as_str().is_some_and(|why| why.contains("token")), "{refused}");
    ensure!(said_of(&node, "web", 0)?.is_null(), "nothing was ordered");
    Ok(())
}

/// What operators said of a pool's backend.
fn said_of(node: &Node, pool: &str, n: usize) -> Result<Value> {
    let pools = node.json(&["pools"])?;
    let pool = pools.as_array().and_then(|pools| pools.iter().find(|p| p["name"] == pool)).context("the pool")?;
    Ok(pool["backends"][n]["admin"]["state"].clone())
}
