//! Text for a person: headings, columns, bars; colours only where they are seen.

use std::io::IsTerminal as _;

/// How a word is meant.
#[derive(Clone, Copy)]
pub(crate) enum Tone {
    Plain,
    Name,
    Good,
    Bad,
    Quiet,
}

pub(crate) struct Screen {
    colours: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colours }
    }

    pub(crate) fn heading(&self, title: &str) {
        self.line(&format!("\n{}", self.bold(title)));
    }

    /// Two spaces in, without colour.
    pub(crate) fn note(&self, text: &str) {
        self.line(&format!("  {}", self.paint(Tone::Quiet, text)));
    }

    pub(crate) fn line(&self, text: &str) {
        println!("{text}");
    }

    /// One row; each cell is padded to its width before it is coloured.
    pub(crate) fn row(&self, cells: &[(Tone, &str, usize)]) {
        let cell = |(tone, text, width): &(Tone, &str, usize)| self.paint(*tone, &format!("{text:<width$}"));
        let cells: Vec<String> = cells.iter().map(cell).collect();
        self.line(format!("  {}", cells.join(" ")).trim_end());
    }

    /// A bar of at most `width` cells.
    pub(crate) fn bar(&self, tone: Tone, share: f64, width: usize) -> String {
        let full = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
        self.paint(tone, &"█".repeat(full)) + &self.paint(Tone::Quiet, &"░".repeat(width - full))
    }

    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.into(),
            Tone::Name => "36",
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Quiet => "2",
        };
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }

    fn bold(&self, text: &str) -> String {
        if self.colours { format!("\x1b[1m{text}\x1b[0m") } else { text.into() }
    }
}
