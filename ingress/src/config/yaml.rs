//! YAML text -> a tree that remembers where each value stands. Knows nothing of the configuration's keys.
//!
//! Bounded for any input: size of the text, depth, number of values, and what aliases may add. Aliases and merge keys
//! (`<<: *base`) are copied, so that every value has one path; its place is where it was written.

mod builder;

use std::borrow::Cow;

pub(super) use self::builder::MAX_BYTES;
use super::problems::{Place, quoted};

/// A document; a parent's id is always smaller than its children's.
#[derive(Debug, Default)]
pub(super) struct Tree<'a> {
    nodes: Vec<Node<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) u32);

#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    pub(super) value: Value<'a>,
    pub(super) place: Place,
    parent: Option<(NodeId, Step<'a>)>,
}

#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Scalar(Scalar<'a>),
    Sequence(Vec<NodeId>),
    /// The keys stand in the children.
    Mapping(Vec<NodeId>),
}

#[derive(Clone, Debug)]
pub(super) struct Scalar<'a> {
    pub(super) text: Cow<'a, str>,
    /// Neither quoted nor a block nor tagged `!!str`: `5`, `true` and `null` have their YAML meaning.
    pub(super) plain: bool,
}

/// How to get to a value from its parent.
#[derive(Clone, Debug)]
pub(super) enum Step<'a> {
    Index(usize),
    Key { name: Cow<'a, str>, place: Place },
}

/// The text is not one YAML document within bounds; or a key stands twice.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) place: Place,
    pub(super) path: String,
    pub(super) message: String,
}

impl<'a> Tree<'a> {
    pub(super) const ROOT: NodeId = NodeId(0);

    pub(super) fn node(&self, id: NodeId) -> &Node<'a> {
        &self.nodes[id.0 as usize]
    }

    /// The values below a sequence or mapping.
    pub(super) fn children(&self, id: NodeId) -> &[NodeId] {
        match &self.node(id).value {
            Value::Scalar(_) => &[],
            Value::Sequence(children) | Value::Mapping(children) => children,
        }
    }

    /// The value under a key of a mapping.
    pub(super) fn child(&self, id: NodeId, key: &str) -> Option<NodeId> {
        self.children(id).iter().copied().find(|child| self.key(*child) == Some(key))
    }

    pub(super) fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.node(id).parent.as_ref().map(|(parent, _)| *parent)
    }

    /// Under which key of its parent a value stands.
    pub(super) fn key(&self, id: NodeId) -> Option<&str> {
        match &self.node(id).parent {
            Some((_, Step::Key { name, .. })) => Some(name),
            Some((_, Step::Index(_))) | None => None,
        }
    }

    /// Where that key stands; a list item's or the document's own place.
    pub(super) fn key_place(&self, id: NodeId) -> Place {
        match &self.node(id).parent {
            Some((_, Step::Key { place, .. })) => *place,
            Some((_, Step::Index(_))) | None => self.node(id).place,
        }
    }

    /// `pools.app.backends[1].weight`; empty for the document.
    pub(super) fn path(&self, id: NodeId) -> String {
        let mut steps = Vec::new();
        let mut at = id;
        while let Some((parent, step)) = &self.node(at).parent {
            steps.push(step);
            at = *parent;
        }
        let mut path = String::new();
        for step in steps.into_iter().rev() {
            match step {
                Step::Index(index) => path.push_str(&format!("[{index}]")),
                Step::Key { name, .. } => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    let plain = |c: char| c.is_ascii_alphanumeric() || "-_*.".contains(c);
                    match !name.is_empty() && name.len() <= 60 && name.chars().all(plain) {
                        true => path.push_str(name),
                        false => path.push_str(&quoted(name)),
                    }
                }
            }
        }
        path
    }
}

impl Scalar<'_> {
    /// `null`, `~` or nothing at all (YAML 1.2 core schema, section 10.3.2).
    pub(super) fn is_null(&self) -> bool {
        self.plain && matches!(&*self.text, "" | "~" | "null" | "Null" | "NULL")
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        match &*self.text {
            "true" | "True" | "TRUE" if self.plain => Some(true),
            "false" | "False" | "FALSE" if self.plain => Some(false),
            _ => None,
        }
    }

    pub(super) fn as_integer(&self) -> Option<i64> {
        if self.plain { self.text.parse().ok() } else { None }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        let is_number = self.text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
        if self.plain && is_number { self.text.parse().ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Tree<'_> {
        let (tree, duplicates) = Tree::parse(text).expect("test YAML");
        assert_eq!(duplicates, []);
        tree
    }

    fn at(tree: &Tree<'_>, keys: &[&str]) -> NodeId {
        keys.iter().fold(Tree::ROOT, |id, key| match key.parse::<usize>() {
            Ok(index) => tree.children(id)[index],
            Err(_) => tree.child(id, key).expect("test key"),
        })
    }

    fn text(tree: &Tree<'_>, keys: &[&str]) -> String {
        match &tree.node(at(tree, keys)).value {
            Value::Scalar(scalar) => scalar.text.to_string(),
            Value::Sequence(_) | Value::Mapping(_) => panic!("{keys:?} is no scalar"),
        }
    }

    fn message(text: &str) -> String {
        let fault = Tree::parse(text).expect_err("test YAML is bad");
        format!("{}:{}: {}: {}", fault.place.line, fault.place.column, fault.path, fault.message)
    }

    #[test]
    fn values_know_their_place_and_path() {
        let tree = parse("a:\n  b: [x, {c: y}]\n  'd e': 1\n");
        let y = at(&tree, &["a", "b", "1", "c"]);
        assert_eq!(tree.path(y), "a.b[1].c");
        assert_eq!(tree.node(y).place, Place { line: 2, column: 14 });
        assert_eq!(tree.key_place(y), Place { line: 2, column: 11 });
        assert_eq!(tree.path(at(&tree, &["a", "d e"])), "a.\"d e\"");
    }

    #[test]
    fn aliases_are_copied_with_a_path_of_their_own() {
        let tree = parse("a: &x {b: [1, 2]}\nc: *x\n");
        assert_eq!(text(&tree, &["c", "b", "1"]), "2");
        assert_eq!(tree.path(at(&tree, &["c", "b", "1"])), "c.b[1]");
    }

    #[test]
    fn own_keys_win_over_merged_ones() {
        let tree = parse("base: &x {a: 1, b: 2}\nother: &y {b: 3, c: 4}\nuse:\n  a: 9\n  <<: [*x, *y]\n");
        let keys: Vec<_> = tree.children(at(&tree, &["use"])).iter().map(|id| tree.key(*id)).collect();
        assert_eq!(keys, [Some("a"), Some("b"), Some("c")]);
        assert_eq!([text(&tree, &["use", "a"]), text(&tree, &["use", "b"])], ["9", "2"]);
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut bomb = String::from("l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let aliases = vec![format!("*l{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("l{level}: &l{level} [{aliases}]\n"));
        }
        assert!(message(&bomb).ends_with("aliases and merge keys add too many values"), "{}", message(&bomb));
    }

    #[test]
    fn depth_is_bounded() {
        for deep in ["[", "- ", "{a: ", "[b, {c: "] {
            let message = message(&deep.repeat(100_000));
            assert!(message.contains("nested deeper than"), "{deep:?}: {message}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused_with_its_place() {
        assert_eq!(message(""), "1:1: : the file is empty");
        assert_eq!(message("# only a comment\n"), "1:1: : the file is empty");
        assert!(message("a: 1\n---\nb: 2\n").contains("2:1: : a second document starts here"));
        assert!(message("a: !secret x\n").contains("1:4: : the tag \"!secret\" has no meaning here"));
        assert!(message("a: &x [*x]\n").contains("this alias stands inside the value that it names"));
        assert!(message("? [a, b]\n: 1\n").contains("a key must be one word"));
        assert!(message("a:\n\tb: 1\n").contains("indent with spaces"), "{}", message("a:\n\tb: 1\n"));
        assert!(message("a: [1, 2").contains("is it whole?"), "{}", message("a: [1, 2"));
        assert!(message("a: \"open").contains("is never closed"), "{}", message("a: \"open"));
    }

    #[test]
    fn a_key_that_stands_twice_is_told() {
        let (tree, duplicates) = Tree::parse("a: 1\nb:\n  c: 2\n  c: 3\n").expect("YAML");
        assert_eq!(
            duplicates,
            [Fault {
                place: Place { line: 4, column: 3 },
                path: "b.c".into(),
                message: "this key stands twice; the first is in line 3".into()
            }]
        );
        assert_eq!(text(&tree, &["b", "c"]), "2");
    }

    #[test]
    fn plain_words_have_their_yaml_meaning_and_quoted_ones_have_not() {
        let tree = parse("- null\n- ~\n-\n- true\n- 5\n- '5'\n- no\n- !!str 5\n");
        let scalars: Vec<_> = tree
            .children(Tree::ROOT)
            .iter()
            .map(|id| match &tree.node(*id).value {
                Value::Scalar(s) => (s.is_null(), s.as_bool(), s.as_integer()),
                Value::Sequence(_) | Value::Mapping(_) => panic!("a scalar"),
            })
            .collect();
        let word = (false, None, None);
        assert_eq!(
            scalars,
            [
                (true, None, None),
                (true, None, None),
                (true, None, None),
                (false, Some(true), None),
                (false, None, Some(5)),
                word,
                word,
                word
            ]
        );
    }
}
