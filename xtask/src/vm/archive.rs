//! An initial ramdisk: a cpio archive in the format "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const END: &str = "TRAILER!!!";

pub(super) struct Archive<W> {
    out: W,
    entries: usize,
    directories: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, entries: 0, directories: BTreeSet::new() }
    }

    /// `path` is absolute, as all paths here.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, FILE, content)
    }

    pub(super) fn program(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, PROGRAM, content)
    }

    /// With all its parents.
    pub(super) fn directory(&mut self, path: &Path) -> Result<()> {
        self.parents(&path.join("any"))
    }

    /// The kernel ignores what has no end.
    pub(super) fn finish(mut self) -> Result<W> {
        self.entry(Path::new(END), 0, &[])?;
        self.out.flush().context("writing the archive")?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &Path) -> Result<()> {
        let parents: Vec<&Path> = path.ancestors().skip(1).filter(|parent| parent.parent().is_some()).collect();
        for parent in parents.into_iter().rev() {
            if self.directories.insert(parent.to_owned()) {
                self.entry(parent, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let path = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        let name = path.trim_start_matches('/');
        let links = 1;
        let [owner, group, time, major, minor, device_major, device_minor, check] = [0; 8];
        let header = [
            self.entries,
            mode as usize,
            owner,
            group,
            links,
            time,
            content.len(),
            major,
            minor,
            device_major,
            device_minor,
            name.len() + 1,
            check,
        ];
        let mut head = String::from("070701");
        for field in header {
            head += &format!("{field:08x}");
        }
        let mut head = [head.as_bytes(), name.as_bytes(), b"\0"].concat();
        head.resize(head.len().next_multiple_of(4), 0);
        let padding = content.len().next_multiple_of(4) - content.len();
        [&head[..], content, &[0; 3][..padding]]
            .into_iter()
            .try_for_each(|part| self.out.write_all(part))
            .with_context(|| format!("writing {path} to the archive"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_is_a_header_a_name_and_its_content_in_whole_words() -> Result<()> {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b"), b"12345")?;
        let bytes = archive.finish()?;
        let text = String::from_utf8(bytes)?;
        let field = |value: usize| format!("{value:08x}");
        let header = |ino: usize, mode: usize, size: usize, name: usize| {
            let zeros = field(0).repeat(2) + &field(1) + &field(0);
            String::from("070701")
                + &field(ino)
                + &field(mode)
                + &zeros
                + &field(size)
                + &field(0).repeat(4)
                + &field(name)
                + &field(0)
        };
        let expected = header(1, 0o040_755, 0, 2) + "a\0" // 112 bytes
            + &header(2, 0o100_644, 5, 4) + "a/b\0\0\0" + "12345\0\0\0"
            + &header(3, 0, 0, 11) + "TRAILER!!!\0\0\0\0";
        assert_eq!(text, expected);
        Ok(())
    }

    #[test]
    fn directories_come_once_and_before_what_is_in_them() -> Result<()> {
        let mut archive = Archive::new(Vec::new());
        archive.directory(Path::new("/var/empty"))?;
        archive.program(Path::new("/var/x"), b"#!")?;
        let bytes = archive.finish()?;
        let order: Vec<usize> = ["var\0", "var/empty\0", "var/x\0"]
            .iter()
            .map(|name| {
                let found: Vec<usize> = bytes
                    .windows(name.len())
                    .enumerate()
                    .filter(|(_, w)| *w == name.as_bytes())
                    .map(|(at, _)| at)
                    .collect();
                assert_eq!(found.len(), 1, "{name:?}");
                found[0]
            })
            .collect();
        assert!(order.is_sorted(), "{order:?}");
        Ok(())
    }
}
