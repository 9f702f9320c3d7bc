//! `scripts/deploy.sh` against a host made of stand-ins: ssh runs here, the builds are shell scripts, systemctl starts nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory that plays the host.
struct Host {
    dir: tempfile::TempDir,
}

/// A build that says `version`, finds the configuration good or not, and becomes ready or not.
struct Build {
    version: &'static str,
    accepts: bool,
    ready: bool,
}

impl Host {
    fn new(installed: Option<&Build>) -> Self {
        let host = Self { dir: tempfile::tempdir().expect("temporary directory") };
        fs::create_dir(host.path("bin")).expect("mkdir");
        host.script("bin/ssh", r#"shift; exec sh -c "$1""#);
        host.script("bin/sudo", r#"[ "$1" != -n ] || shift; exec "$@""#);
        let log = host.path("systemctl.log");
        host.script("bin/systemctl", &format!(r#"echo "$@" >> {}; [ "$1" != show ] || echo 42"#, log.display()));
        host.script("bin/journalctl", "echo the log says why");
        if let Some(build) = installed {
            host.script("ingress", &build.script());
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        path
    }

    fn deploy(&self, build: &Build, options: &[&str]) -> Output {
        let binary = self.script("build", &build.script());
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/deploy.sh"))
            .args(options)
            .arg(binary)
            .env("PATH", path)
            .env("HOST", "proxy-1.example.com")
            .env("DESTINATION", self.path("ingress"))
            .env("CONFIG", self.path("it's a config.yaml"))
            .env("READY_TIMEOUT", "3")
            .output()
            .expect("bash runs")
    }

    /// The version that is installed, if any.
    fn installed(&self) -> Option<String> {
        let output = Command::new(self.path("ingress")).arg("version").output().ok()?;
        Some(String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned())
    }

    fn restarts(&self) -> usize {
        let log = fs::read_to_string(self.path("systemctl.log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with("restart ")).count()
    }

    fn left_over(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.dir.path()).expect("list").filter_map(|entry| entry.ok().map(|e| e.path()));
        files.filter(|path| path.to_string_lossy().contains("ingress.new")).collect()
    }
}

impl Build {
    const fn good(version: &'static str) -> Self {
        Self { version, accepts: true, ready: true }
    }

    fn script(&self) -> String {
        let Self { version, accepts, ready } = self;
        let check = if *accepts { "true" } else { "echo 'line 1: unknown key' >&2; exit 2" };
        // The configuration's name has a quote and spaces in it, and must arrive in one piece.
        format!(
            r#"case $1 in
            version) echo {version} ;;
            check) case $3 in *"/it's a config.yaml") {check} ;; *) exit 9 ;; esac ;;
            status) echo '{{ "ready": {ready} }}' ;;
            esac"#
        )
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_good_build_replaces_the_old_one_and_keeps_it() {
    let host = Host::new(Some(&Build::good("old")));
    let output = host.deploy(&Build::good("new"), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(host.installed().as_deref(), Some("new"));
    assert_eq!(host.restarts(), 1);
    assert!(fs::read_to_string(host.path("ingress.previous")).expect("kept").contains("echo old"));
    assert_eq!(host.left_over(), [] as [PathBuf; 0]);
}

#[test]
fn a_first_installation_needs_no_previous_build() {
    let host = Host::new(None);
    let output = host.deploy(&Build::good("new"), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(host.installed().as_deref(), Some("new"));
}

#[test]
fn a_build_that_refuses_the_configuration_changes_nothing() {
    let host = Host::new(Some(&Build::good("old")));
    let output = host.deploy(&Build { accepts: false, ..Build::good("new") }, &[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("line 1: unknown key"), "{}", said(&output));
    assert_eq!((host.installed().as_deref(), host.restarts()), (Some("old"), 0));
    assert_eq!(host.left_over(), [] as [PathBuf; 0]);
}

#[test]
fn a_build_that_does_not_become_ready_is_taken_back() {
    let host = Host::new(Some(&Build::good("old")));
    let output = host.deploy(&Build { ready: false, ..Build::good("new") }, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!((host.installed().as_deref(), host.restarts()), (Some("old"), 2));
    let said = said(&output);
    assert!(said.contains("the log says why") && said.contains("the previous build serves again: old"), "{said}");
}

#[test]
fn a_dry_run_checks_and_changes_nothing() {
    let host = Host::new(Some(&Build::good("old")));
    let output = host.deploy(&Build::good("new"), &["--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!((host.installed().as_deref(), host.restarts()), (Some("old"), 0));
    assert_eq!(host.left_over(), [] as [PathBuf; 0]);
}

#[test]
fn without_a_host_it_explains_itself() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/deploy.sh");
    let output = Command::new(script).arg("/bin/true").env_remove("HOST").output().expect("bash runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("HOST is not set"), "{}", said(&output));
}
