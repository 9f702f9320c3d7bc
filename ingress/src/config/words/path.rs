//! Paths, of files and of URLs, and what goes with them.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{AbsolutePath, FileMode, HttpUrl, PathPattern, SocketPath, UrlPath};
use crate::config::PathMatch;
use crate::config::problems::quoted;

impl AbsolutePath {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let path = Path::new(word);
        if path.is_absolute() && !word.contains('\0') {
            return Ok(Self(path.to_owned()));
        }
        Err(format!("{} is not an absolute path; it must begin with /", quoted(word)))
    }

    pub(in crate::config) fn new(path: &str) -> Self {
        Self(PathBuf::from(path))
    }
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl SocketPath {
    /// What fits into `sun_path`, with the zero byte at its end (unix(7)).
    const LONGEST: usize = 107;

    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let AbsolutePath(path) = AbsolutePath::parse(word)?;
        match word.len() {
            0..=Self::LONGEST => Ok(Self(path)),
            _ => Err(format!(
                "{} is longer than the {} bytes that a socket's path can have",
                quoted(word),
                Self::LONGEST
            )),
        }
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl FileMode {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let bits = (3..=4).contains(&word.len()).then(|| u32::from_str_radix(word, 8).ok()).flatten();
        let bits = bits.filter(|bits| *bits <= 0o777);
        bits.map(Self)
            .ok_or_else(|| format!("{} is no file mode; write three octal digits, such as 0660", quoted(word)))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl UrlPath {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        if word.starts_with('/') && word.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Self(word.to_owned()));
        }
        Err(format!("{} is not a path of a URL; it must begin with / and hold no spaces", quoted(word)))
    }
}

impl PathPattern {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let UrlPath(path) = UrlPath::parse(word)?;
        let below = path.strip_suffix('*').filter(|path| path.ends_with('/'));
        let matched = below.map_or_else(|| PathMatch::Exact(path.clone()), |path| PathMatch::Below(path.to_owned()));
        let (PathMatch::Exact(plain) | PathMatch::Below(plain)) = &matched;
        if plain.contains(['*', '?', '#']) {
            return Err(format!("{} is not a path; write /ws, or /api/* for all below it", quoted(word)));
        }
        Ok(Self(matched))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            PathMatch::Exact(path) => f.write_str(path),
            PathMatch::Below(path) => write!(f, "{path}*"),
        }
    }
}

impl HttpUrl {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let rest = word.strip_prefix("http://").or_else(|| word.strip_prefix("https://"));
        let Some(rest) = rest else { return Err(format!("{} does not begin with http:// or https://", quoted(word))) };
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        if host.contains('@') {
            // Not repeated: it is a secret.
            return Err("the URL holds a user and password; write a `token_file`".to_owned());
        }
        if host.is_empty() || rest.contains('#') || !word.chars().all(|c| c.is_ascii_graphic()) {
            return Err(format!("{} is not a URL such as http://10.50.0.1:8081/v1/config", quoted(word)));
        }
        Ok(Self(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_paths_fit_into_the_kernels_address() {
        assert!(SocketPath::parse(&format!("/{}", "a".repeat(106))).is_ok());
        assert!(SocketPath::parse(&format!("/{}", "a".repeat(107))).is_err());
        assert!(SocketPath::parse("run/admin.sock").is_err());
    }
}
