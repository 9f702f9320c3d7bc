//! A real Prometheus reads a real daemon: its alerts fire, and every panel of the dashboard has a query that it understands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use ingress_tests::netns::Namespace;
use ingress_tests::node::ADMIN_PORT;
use ingress_tests::process::Process;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::skip::find_program;
use ingress_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file)
}

/// Runs beside the daemon; stopped when dropped.
struct Prometheus {
    ns: Namespace,
    _process: Process,
    _dir: TempDir,
}

impl Prometheus {
    const PORT: u16 = 9090;

    /// Scrapes the daemon each second, with the shipped rules: only that nothing has to last for minutes.
    fn start(ns: &Namespace) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ing-prometheus-").tempdir()?;
        let path = |file: &str| dir.path().join(file);
        let rules = std::fs::read_to_string(packaging("prometheus/alerts.yaml"))?;
        let hasty =
            rules.lines().map(|line| if line.trim_start().starts_with("for: ") { "        for: 0s" } else { line });
        std::fs::write(path("alerts.yaml"), hasty.collect::<Vec<_>>().join("\n"))?;
        std::fs::write(
            path("prometheus.yaml"),
            format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [alerts.yaml]\nscrape_configs:\n  \
                 - job_name: ingress\n    static_configs: [{{targets: [\"127.0.0.1:{ADMIN_PORT}\"]}}]\n"
            ),
        )?;
        let mut command = ns.command(find_program("prometheus").context("prometheus is not installed")?);
        command.arg(format!("--config.file={}", path("prometheus.yaml").display()));
        command.arg(format!("--storage.tsdb.path={}", path("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{}", Self::PORT));
        let process = Process::spawn_logged("prometheus", &mut command, &path("output"))?;
        let prometheus = Self { ns: ns.clone(), _process: process, _dir: dir };
        wait_until(PATIENCE, "Prometheus has read the daemon", || {
            prometheus.query("ingress_build_info").is_ok_and(|found| !found.is_empty())
        })?;
        Ok(prometheus)
    }

    fn query(&self, expr: &str) -> Result<Vec<Value>> {
        let url = format!("http://127.0.0.1:{}/api/v1/query", Self::PORT);
        let query = format!("query={expr}");
        let answer = self.ns.run("curl", &["--silent", "--max-time", "10", "--data-urlencode", &query, &url])?;
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("{expr}: {answer}"))?;
        ensure!(answer["status"] == "success", "{expr}: {answer}");
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    /// The names of the alerts that fire.
    fn firing(&self) -> Vec<String> {
        let alerts = self.query("ALERTS{alertstate=\"firing\"}").unwrap_or_default();
        let names = alerts.iter().filter_map(|alert| alert["metric"]["alertname"].as_str());
        names.map(str::to_owned).collect()
    }
}

#[test]
fn a_backend_that_dies_raises_an_alert_in_prometheus_and_its_return_ends_it() -> Result<()> {
    require!("nginx", "curl", "prometheus");
    let mut s1 = S1::start()?;
    let mut config = s1.config();
    let check = json!({ "type": "tcp", "interval": "100ms", "timeout": "100ms", "rise": 2, "fall": 2 });
    config["pools"]["web"]["health"] = check;
    config["hooks"] = json!({ "page": { "command": { "argv": ["/bin/true"] }, "gather": "0s" } });
    let _node = s1.node_with(config)?;
    s1.curl("fiscalismia.com").get_json("/whoami")?;
    let prometheus = Prometheus::start(&s1.lab.proxy.ns)?;
    wait_until(PATIENCE, "nothing fires at a node that is well", || prometheus.firing().is_empty())?;

    s1.backend("web")?.stop();
    wait_until(PATIENCE, "the alerts fire", || {
        let firing = prometheus.firing();
        ["IngressBackendDown", "IngressPoolDown"].iter().all(|alert| firing.iter().any(|name| name == alert))
    })?;
    let down = prometheus.query("ingress_backend_up == 0")?;
    assert_eq!(down.iter().map(|series| &series["metric"]["pool"]).collect::<Vec<_>>(), ["web"]);
    s1.backend("web")?.restart()?;
    wait_until(PATIENCE, "they end", || prometheus.firing().is_empty())?;

    // What Grafana would fill in.
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(packaging("grafana/ingress.json"))?)?;
    let (mut queries, mut answered) = (0, 0);
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().context("a query")?;
            let expr = expr.replace("$instance", ".*").replace("$pool", ".*").replace("$__rate_interval", "10s");
            let found = prometheus.query(&expr).with_context(|| format!("panel {}", panel["title"]))?;
            queries += 1;
            answered += usize::from(!found.is_empty());
        }
    }
    // This node has no peers, no providers, no admission, and hardly any traffic.
    ensure!(queries > 50 && answered > queries / 2, "{answered} of {queries} panels' queries find something");
    Ok(())
}

#[test]
fn promtool_finds_nothing_wrong_with_rules_their_tests_and_our_metrics() -> Result<()> {
    require!("nginx", "curl", "promtool");
    let s1 = S1::start()?;
    let ns = &s1.lab.proxy.ns;
    let rules = packaging("prometheus/alerts.yaml").display().to_string();
    let tests = packaging("prometheus/alerts_test.yaml").display().to_string();
    ns.run("promtool", &["check", "rules", &rules])?;
    ns.run("promtool", &["test", "rules", &tests])?;
    let node = s1.node()?;
    s1.curl("fiscalismia.com").get_json("/whoami")?;
    let dir = tempfile::tempdir()?;
    let text = dir.path().join("metrics");
    std::fs::write(&text, as_older_text(&node.metrics()?))?;
    let said = ns.run("sh", &["-c", &format!("promtool check metrics < {} 2>&1 || true", text.display())])?;
    assert_eq!(said, "", "promtool check metrics");
    Ok(())
}

/// promtool lints the format before OpenMetrics, in which families of counters and infos are called as their samples are.
fn as_older_text(open_metrics: &str) -> String {
    let comments = open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let suffix = |kind: &str| match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    let suffixes: BTreeMap<&str, &str> = comments.map(|(family, kind)| (family, suffix(kind))).collect();
    let mut text = String::new();
    for line in open_metrics.lines().filter(|line| *line != "# EOF") {
        let comment = ["# HELP ", "# TYPE "].iter().find_map(|word| Some((*word, line.strip_prefix(word)?)));
        match comment.and_then(|(word, rest)| Some((word, rest.split_once(' ')?))) {
            Some((word, (family, rest))) => {
                let (suffix, rest) = (suffixes.get(family).copied().unwrap_or_default(), rest.replace("info", "gauge"));
                text.push_str(&format!("{word}{family}{suffix} {rest}\n"));
            }
            None => text.push_str(&format!("{line}\n")),
        }
    }
    text
}
