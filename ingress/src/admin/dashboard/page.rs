//! Parts of long lists: a page, and the words that somebody looks for.

use serde::Serialize;

/// One page of what matches.
#[derive(Debug, Serialize)]
pub(super) struct Page<T> {
    /// From 0. The last page, if less was there than was asked for.
    pub(super) page: usize,
    pub(super) pages: usize,
    /// Before this page's first row.
    pub(super) before: usize,
    pub(super) matching: usize,
    /// Without any filter.
    pub(super) all: usize,
    pub(super) rows: Vec<T>,
}

impl<T> Page<T> {
    /// `matching` has every row; `show` is called for those of the page only.
    pub(super) fn cut<R>(matching: Vec<R>, all: usize, page: usize, size: usize, show: impl FnMut(R) -> T) -> Self {
        let pages = matching.len().div_ceil(size).max(1);
        let page = page.min(pages - 1);
        let before = page * size;
        let count = matching.len();
        let rows = matching.into_iter().skip(before).take(size).map(show).collect();
        Self { page, pages, before, matching: count, all, rows }
    }
}

/// What somebody typed: words that must all be found, wherever, in upper or lower case.
pub(super) struct Words(Vec<String>);

impl Words {
    /// Only so much of what was typed is looked at.
    const LONGEST: usize = 256;

    pub(super) fn new(typed: &str) -> Self {
        let end = typed.char_indices().nth(Self::LONGEST).map_or(typed.len(), |(at, _)| at);
        Self(typed[..end].split_whitespace().map(str::to_ascii_lowercase).collect())
    }

    /// Whether each word stands in one of `texts`.
    pub(super) fn are_in(&self, texts: &[&str]) -> bool {
        self.0.iter().all(|word| texts.iter().any(|text| contains(text, word)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Without allocating: it is asked tens of thousands of times for one answer.
fn contains(text: &str, lower_case: &str) -> bool {
    let (text, word) = (text.as_bytes(), lower_case.as_bytes());
    text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_beyond_the_end_is_the_last_one() {
        let page = Page::cut((0..120).collect(), 500, 9, 50, |n: i32| n);
        assert_eq!((page.page, page.pages, page.before, page.matching, page.all), (2, 3, 100, 120, 500));
        assert_eq!(page.rows, (100..120).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_is_one_empty_page() {
        let page = Page::cut(Vec::new(), 500, 3, 50, |n: i32| n);
        assert_eq!((page.page, page.pages, page.matching, page.rows.len()), (0, 1, 0, 0));
    }

    #[test]
    fn every_word_must_be_somewhere() {
        let texts = ["Shop.Example.com", "web-pool"];
        for found in ["", "  ", "shop", "EXAMPLE", "pool shop", "shop.example.com"] {
            assert!(Words::new(found).are_in(&texts), "{found:?}");
        }
        for missing in ["shops", "shop nowhere", "compweb"] {
            assert!(!Words::new(missing).are_in(&texts), "{missing:?}");
        }
        assert!(Words::new(&"é".repeat(10_000)).are_in(&[&"é".repeat(300)]), "the rest is not looked at");
    }
}
