//! Fetches a kernel of Debian's: by the host's own apt, from the host's own mirror, without touching what the host has installed
//! or where it installs from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Depends on the newest kernel of a suite; such a kernel has what virtual machines need, and little else.
const NEWEST: &str = "linux-image-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An unpacked kernel package.
pub(super) struct Kernel {
    /// For instance `6.1.0-50-cloud-amd64`.
    pub(super) release: String,
    root: PathBuf,
}

impl Kernel {
    /// The newest kernel of `suite`, in `dir`. One that is there already is used as it is.
    pub(super) fn fetch(suite: &str, dir: &Path) -> Result<Self> {
        if !dir.exists() {
            let apt = Apt::new(suite)?;
            let package = apt.download()?;
            let unpacked = apt.dir.path().join("unpacked");
            output(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
            // In one step: what is there is whole.
            fs::rename(&unpacked, dir).with_context(|| format!("moving the kernel to {}", dir.display()))?;
        }
        let image = fs::read_dir(dir.join("boot"))?
            .flatten()
            .find_map(|file| Some(file.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()));
        let release = image.with_context(|| format!("no kernel in {}; remove it, to fetch it again", dir.display()))?;
        Ok(Self { release, root: dir.to_owned() })
    }

    pub(super) fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    pub(super) fn modules(&self) -> PathBuf {
        // Debian 13 merges /lib into /usr in packages too.
        let dirs = ["usr/lib/modules", "lib/modules"].map(|dir| self.root.join(dir).join(&self.release));
        let [merged, old] = dirs;
        if merged.is_dir() { merged } else { old }
    }
}

/// apt with one source and directories of its own.
struct Apt {
    dir: tempfile::TempDir,
}

impl Apt {
    fn new(suite: &str) -> Result<Self> {
        let repository = repository()?;
        // Beside the result, so that it can be moved there.
        let dir = super::directory()?;
        let dir = tempfile::Builder::new().prefix("apt-").tempdir_in(dir).context("making apt a directory")?;
        for sub in ["lists/partial", "cache/archives/partial", "package"] {
            fs::create_dir_all(dir.path().join(sub))?;
        }
        let line = format!("deb [signed-by={KEYRING}] {repository} {suite} main\n");
        fs::write(dir.path().join("sources.list"), line)?;
        let apt = Self { dir };
        output(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let own = |name: &str| self.dir.path().join(name).display().to_string();
        for option in [
            format!("Dir::Etc::sourcelist={}", own("sources.list")),
            "Dir::Etc::sourceparts=-".into(),
            format!("Dir::State::lists={}", own("lists")),
            format!("Dir::Cache={}", own("cache")),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=2".into(),
            // The user that apt would become cannot write here.
            "APT::Sandbox::User=root".into(),
        ] {
            command.args(["-o", &option]);
        }
        command.env("LC_ALL", "C").current_dir(self.dir.path().join("package"));
        command
    }

    /// The package file of the kernel that [`NEWEST`] depends on.
    fn download(&self) -> Result<PathBuf> {
        let said = output(self.command("apt-cache").args(["depends", "--important", NEWEST]))?;
        let name = said.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        let name = name.with_context(|| format!("{NEWEST} depends on no kernel: {said}"))?;
        eprintln!("fetching {name}");
        output(self.command("apt-get").args(["download", name]))?;
        let file = fs::read_dir(self.dir.path().join("package"))?.flatten().next();
        Ok(file.with_context(|| format!("apt-get said that it fetched {name}, but did not"))?.path())
    }
}

/// The Debian archive that this host installs from.
fn repository() -> Result<String> {
    let wanted =
        ["--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main"];
    let known = output(Command::new("apt-get").arg("indextargets").args(wanted))?;
    Ok(known.lines().next().context("this host's apt knows no Debian archive")?.to_owned())
}

/// What it prints, if it succeeds.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {name}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ended with {}: {}", output.status, words.lines().last().unwrap_or(""));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
