//! Kernel modules out of an unpacked package, each after those that it needs. The package has no `modules.dep`: only its
//! installation would make one. Each module says itself what it needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// One module, decompressed.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// `names` and all that they need, in the order in which they can be loaded. What is built into the kernel is left out.
pub(super) fn collect(dir: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(dir, &mut files)?;
    let built_in = dir.join("modules.builtin");
    let built_in = fs::read_to_string(&built_in).with_context(|| format!("reading {}", built_in.display()))?;
    let built_in = built_in.lines().filter_map(|line| module_name(Path::new(line))).collect();
    let mut collection = Collection { files, built_in, modules: Vec::new() };
    names.iter().try_for_each(|name| collection.add(name, 0))?;
    Ok(collection.modules)
}

struct Collection {
    files: BTreeMap<String, PathBuf>,
    built_in: Vec<String>,
    modules: Vec<Module>,
}

/// Far deeper than modules are.
const DEEPEST: usize = 32;

impl Collection {
    fn add(&mut self, name: &str, depth: usize) -> Result<()> {
        ensure!(depth < DEEPEST, "modules need one another without end, {name} among them");
        let present = |name: &String| self.modules.iter().any(|module| module.name == *name);
        let name = name.replace('-', "_");
        if present(&name) || self.built_in.contains(&name) {
            return Ok(());
        }
        let Some(file) = self.files.get(&name) else { bail!("the kernel has no module {name}") };
        let content = decompressed(file)?;
        for needed in needs(&content) {
            self.add(&needed, depth + 1)?;
        }
        self.modules.push(Module { name, content });
        Ok(())
    }
}

fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/net/sched/act_ct.ko.xz` is `act_ct`. In names `-` and `_` are the same.
fn module_name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn decompressed(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("reading {}", file.display()));
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output().context("starting xz")?;
    ensure!(output.status.success(), "xz could not decompress {}", file.display());
    Ok(output.stdout)
}

/// `depends=a,b` of the module's `.modinfo`, whose words end with zeros.
fn needs(module: &[u8]) -> Vec<String> {
    const WORD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(WORD.len()).position(|window| window == WORD) else { return Vec::new() };
    let names = module[at + WORD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(names).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(modules: &[(&str, &str)]) -> Result<tempfile::TempDir> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("net"))?;
        fs::write(dir.path().join("modules.builtin"), "kernel/net/ipv6.ko\n")?;
        for (name, needs) in modules {
            fs::write(dir.path().join(format!("net/{name}.ko")), format!("ELF\0depends={needs}\0license=GPL\0"))?;
        }
        Ok(dir)
    }

    #[test]
    fn a_module_comes_once_and_after_what_it_needs() -> Result<()> {
        let dir = kernel(&[("a", ""), ("b-c", "a"), ("d", "a,b-c"), ("unused", "")])?;
        let found = collect(dir.path(), &["d", "b_c", "ipv6"])?;
        let names: Vec<_> = found.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["a", "b_c", "d"]);
        Ok(())
    }

    #[test]
    fn a_module_that_is_missing_or_needs_itself_is_named() -> Result<()> {
        let dir = kernel(&[("a", "gone"), ("loop", "loop")])?;
        for (name, said) in [("a", "gone"), ("loop", "loop")] {
            let error = collect(dir.path(), &[name]).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(said), "{error:?}");
        }
        Ok(())
    }
}
