//! Who can use the dashboard, and what it keeps from whom.

use anyhow::{Context as _, Result, ensure};
use ingress_tests::lab::LabOptions;
use ingress_tests::s1::S1;
use ingress_tests::wait::PATIENCE;
use ingress_tests::{axe, require, skip};
use serde_json::json;

use super::{VIEWS, drawn, guarded, no_complaints, open, picture, shows, text};

#[test]
fn dashboard_can_be_used_by_keyboard() -> Result<()> {
    require!("chromium");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let _node = s1.node_with(guarded(&s1))?;
    let mut browser = open(&s1, "")?;
    browser.press("Tab")?;
    ensure!(browser.eval("document.activeElement.id")? == "skip", "the first stop leads past the tabs");
    for _ in 0..20 {
        if browser.eval("document.activeElement.textContent")? == "Routes" {
            break;
        }
        browser.press("Tab")?;
    }
    let ring = browser.eval("getComputedStyle(document.activeElement).outlineStyle")?;
    ensure!(ring == "solid", "the focus can be seen: {ring}");
    browser.press("Enter")?;
    browser.wait_until("the view is there, and the focus in it", "document.activeElement.id === 'routes-title'")?;
    ensure!(
        browser.eval("document.querySelector('#tabs [aria-current=page]').textContent")? == "Routes",
        "the tab says so"
    );
    browser.press("Tab")?;
    ensure!(browser.eval("document.activeElement.name")? == "q", "the next stop is the search");
    no_complaints(&mut browser)
}

#[test]
fn axe_finds_nothing_in_any_view_and_scheme() -> Result<()> {
    require!("nginx", "curl", "chromium");
    let Some(axe) = axe::source() else {
        return skip::skip("not installed: axe-core (scripts/install-tools.sh)");
    };
    let s1 = S1::example(&LabOptions::default())?;
    let mut config = guarded(&s1);
    config["pools"]["old"] = json!({ "backends": [s1.lab.backends[0].socket(4443).to_string()],
        "health": { "type": "tcp", "interval": "1s", "timeout": "1s", "rise": 2, "fall": 3 } });
    config["routes"].as_array_mut().context("routes")?.push(json!({ "sni": "old.example.com", "pool": "old" }));
    let _node = s1.node_with(config)?;
    s1.curl("app.example.com").get("/whoami")?;
    let mut browser = open(&s1, "#overview")?;
    browser.wait_until("an alert", &shows("#alerts", "is down"))?;
    browser.eval(&axe)?;
    for (scheme, width) in [("light", 1280), ("dark", 1280), ("light", 390)] {
        browser.prefer(scheme)?;
        browser.resize(width, 800)?;
        for view in VIEWS {
            browser.eval(&format!("location.hash = '{view}'"))?;
            browser.wait_until(view, &drawn(view))?;
            let found = browser.eval(axe::RUN)?;
            ensure!(found == json!([]), "{view}, {scheme}, {width} pixels wide: {found:#}");
        }
    }
    Ok(())
}

#[test]
fn without_a_password_the_dashboard_shows_no_client() -> Result<()> {
    require!("nginx", "curl", "chromium");
    let s1 = S1::example(&LabOptions::default())?;
    let _node = s1.node()?;
    let download =
        s1.backends[0].publish("big", 64 << 20).and_then(|_| s1.curl("app.example.com").download("/files/big"))?;
    download.wait_for_bytes(1 << 20, PATIENCE)?;
    download.hold();
    let mut browser = open(&s1, "#connections")?;
    browser.wait_until("it says why", &shows("#connections .empty", "admin.http.basic_auth"))?;
    let page = text(&mut browser, "body")?;
    ensure!(!page.contains(&s1.lab.clients[0].address.to_string()), "{page}");
    ensure!(!page.contains("app.example.com"), "{page}");
    browser.eval("location.hash = 'pools'")?;
    browser.wait_until("nothing can be changed", &shows("#read-only", "Read-only"))?;
    ensure!(browser.eval("document.querySelector('.orders button')?.checkVisibility() ?? false")? == false, "a button");
    picture(&mut browser, "pools-without-password")
}

#[test]
fn text_from_outside_is_text() -> Result<()> {
    require!("chromium");
    let s1 = S1::without_backends(&LabOptions::default())?;
    let dir = tempfile::tempdir()?;
    let evil = "<img src=x onerror=document.title='taken'>";
    std::fs::write(
        dir.path().join("routes.yaml"),
        format!(
            "http:\n  routers:\n    evil:\n      rule: \"Host(`a.example.com`) && Path(`/{evil}`)\"\n      service: s\n  services:\n    s:\n      loadBalancer: {{servers: [{{url: \"http://10.0.0.1\"}}]}}\n"
        ),
    )?;
    let mut config = guarded(&s1);
    config["providers"]["edge"] = json!({ "file": { "path": dir.path().join("routes.yaml") } });
    let _node = s1.node_with(config)?;
    let mut browser = open(&s1, "#routes?state=unserved")?;
    browser.wait_until("it is shown as it was written", &shows("#routes tbody", evil))?;
    ensure!(browser.eval("document.querySelectorAll('main img, main script').length")? == 0, "it became an element");
    ensure!(browser.eval("document.title.includes('taken')")? == false, "it ran");
    no_complaints(&mut browser)
}
