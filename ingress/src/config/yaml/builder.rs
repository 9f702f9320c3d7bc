//! The parser's events -> a tree, without recursion and within bounds.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{Fault, Node, NodeId, Scalar, Step, Tree, Value};
use crate::config::problems::{Place, Problems, quoted};

/// Larger files are refused.
pub(in crate::config) const MAX_BYTES: usize = 16 << 20;
const MAX_DEPTH: usize = 64;
/// Some 300,000 routes.
const MAX_NODES: usize = 1_000_000;
/// What aliases and merge keys may add by copying.
const MAX_COPIED: usize = 100_000;

impl<'a> Tree<'a> {
    /// The tree, and the keys that stand twice (the first one counts).
    ///
    /// # Errors
    /// The first place where the text is not YAML, or leaves the bounds.
    pub(in crate::config) fn parse(text: &'a str) -> Result<(Self, Vec<Fault>), Fault> {
        if text.len() > MAX_BYTES {
            return Err(fault(Place::START, format!("the file is larger than {} MiB", MAX_BYTES >> 20)));
        }
        let mut builder = Builder::default();
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| {
                let message = explain(error.info(), text, error.marker().line());
                fault(place(*error.marker()), message)
            })?;
            builder.event(event, span)?;
        }
        if builder.tree.nodes.is_empty() {
            return Err(fault(Place::START, "the file is empty"));
        }
        Ok((builder.tree, builder.duplicates))
    }
}

/// Turns the parser's events into a tree, without recursion.
#[derive(Default)]
struct Builder<'a> {
    tree: Tree<'a>,
    /// Collections that are not closed yet, outermost first.
    open: Vec<Open<'a>>,
    anchors: HashMap<usize, NodeId>,
    documents: usize,
    copied: usize,
    duplicates: Vec<Fault>,
}

struct Open<'a> {
    id: NodeId,
    anchor: usize,
    /// In a mapping: the key whose value comes next.
    key: Option<(Cow<'a, str>, Place)>,
    seen: HashSet<Cow<'a, str>>,
}

impl<'a> Builder<'a> {
    fn event(&mut self, event: Event<'a>, span: Span) -> Result<(), Fault> {
        let at = place(span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                match self.documents {
                    1 => Ok(()),
                    _ => Err(fault(at, "a second document starts here; the configuration is one document")),
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !check_tag(tag.as_deref(), at)?;
                self.scalar(Scalar { text, plain }, anchor, at)
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), at)?;
                self.start(Value::Sequence(Vec::new()), anchor, at)
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), at)?;
                self.start(Value::Mapping(Vec::new()), anchor, at)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(anchor, at),
        }
    }

    fn scalar(&mut self, scalar: Scalar<'a>, anchor: usize, at: Place) -> Result<(), Fault> {
        if self.expects_key() {
            return self.take_key(scalar.text, at);
        }
        let id = self.add(Value::Scalar(scalar), at)?;
        self.anchors.insert(anchor, id);
        Ok(())
    }

    fn start(&mut self, value: Value<'a>, anchor: usize, at: Place) -> Result<(), Fault> {
        if self.expects_key() {
            return Err(self.fault_here(at, "a key must be one word, not a list or a mapping"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(self.fault_here(at, &format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let id = self.add(value, at)?;
        self.open.push(Open { id, anchor, key: None, seen: HashSet::new() });
        Ok(())
    }

    /// An anchor counts from the end of its value on: a value cannot contain itself.
    fn end(&mut self) -> Result<(), Fault> {
        let Some(closed) = self.open.pop() else { return Ok(()) };
        self.anchors.insert(closed.anchor, closed.id);
        self.merge(closed.id)
    }

    fn alias(&mut self, anchor: usize, at: Place) -> Result<(), Fault> {
        let Some(&target) = self.anchors.get(&anchor) else {
            return Err(self.fault_here(at, "this alias stands inside the value that it names"));
        };
        if self.expects_key() {
            return match &self.tree.node(target).value {
                Value::Scalar(scalar) => {
                    let text = scalar.text.clone();
                    self.take_key(text, at)
                }
                Value::Sequence(_) | Value::Mapping(_) => {
                    Err(self.fault_here(at, "a key must be one word, not a list or a mapping"))
                }
            };
        }
        let parent = self.step();
        self.copy(target, parent, at)?;
        Ok(())
    }

    fn expects_key(&self) -> bool {
        self.open
            .last()
            .is_some_and(|open| open.key.is_none() && matches!(self.tree.node(open.id).value, Value::Mapping(_)))
    }

    fn take_key(&mut self, name: Cow<'a, str>, place: Place) -> Result<(), Fault> {
        if let Some(open) = self.open.last_mut() {
            open.key = Some((name, place));
        }
        Ok(())
    }

    /// Where the next value goes.
    fn step(&mut self) -> Option<(NodeId, Step<'a>)> {
        let open = self.open.last_mut()?;
        let step = match open.key.take() {
            Some((name, place)) => Step::Key { name, place },
            None => Step::Index(self.tree.children(open.id).len()),
        };
        Some((open.id, step))
    }

    fn add(&mut self, value: Value<'a>, at: Place) -> Result<NodeId, Fault> {
        let parent = self.step();
        self.insert(Node { value, place: at, parent })
    }

    fn insert(&mut self, node: Node<'a>) -> Result<NodeId, Fault> {
        let id = match u32::try_from(self.tree.nodes.len()) {
            Ok(id) if self.tree.nodes.len() < MAX_NODES => NodeId(id),
            Ok(_) | Err(_) => return Err(fault(node.place, format!("the file holds more than {MAX_NODES} values"))),
        };
        let parent = node.parent.clone();
        self.tree.nodes.push(node);
        let Some((parent, step)) = parent else { return Ok(id) };
        if let Step::Key { name, place } = step
            && let Some(open) = self.open.last_mut().filter(|open| open.id == parent)
            && !open.seen.insert(name)
        {
            if self.duplicates.len() >= Problems::LIMIT {
                return Ok(id);
            }
            let path = self.tree.path(id);
            let first = self.tree.children(parent).iter().find(|child| self.tree.key(**child) == self.tree.key(id));
            let line = first.map_or(place.line, |first| self.tree.key_place(*first).line);
            let message = format!("this key stands twice; the first is in line {line}");
            self.duplicates.push(Fault { place, path, message });
            // The second value keeps its path for what lies below it, but is nobody's child.
            return Ok(id);
        }
        match &mut self.tree.nodes[parent.0 as usize].value {
            Value::Sequence(children) | Value::Mapping(children) => children.push(id),
            Value::Scalar(_) => {}
        }
        Ok(id)
    }

    /// Copies a value and all below it; each level adds to the bill, so that aliases of aliases stay bounded.
    fn copy(&mut self, source: NodeId, parent: Option<(NodeId, Step<'a>)>, alias: Place) -> Result<NodeId, Fault> {
        let mut root = None;
        let mut to_copy = vec![(source, parent)];
        while let Some((source, parent)) = to_copy.pop() {
            self.copied += 1;
            if self.copied > MAX_COPIED {
                return Err(self.fault_here(alias, "aliases and merge keys add too many values"));
            }
            let Node { value, place, parent: _ } = self.tree.node(source).clone();
            let (empty, children) = match value {
                Value::Scalar(_) => (value, Vec::new()),
                Value::Sequence(children) => (Value::Sequence(Vec::new()), children),
                Value::Mapping(children) => (Value::Mapping(Vec::new()), children),
            };
            let copy = self.insert(Node { value: empty, place, parent })?;
            root.get_or_insert(copy);
            // Reversed, because the stack gives them back last first.
            for child in children.into_iter().rev() {
                let step = match &self.tree.node(child).parent {
                    Some((_, step)) => step.clone(),
                    None => Step::Index(0),
                };
                to_copy.push((child, Some((copy, step))));
            }
        }
        root.ok_or_else(|| fault(alias, "this alias names nothing"))
    }

    /// `<<: *base` or `<<: [*a, *b]`: keys of the base that the mapping does not have itself.
    fn merge(&mut self, mapping: NodeId) -> Result<(), Fault> {
        let Value::Mapping(children) = &self.tree.node(mapping).value else { return Ok(()) };
        let Some(at) = children.iter().position(|child| self.tree.key(*child) == Some("<<")) else { return Ok(()) };
        let (merge, mut children) = (children[at], children.clone());
        children.remove(at);
        let alias = self.tree.key_place(merge);
        let bases = match &self.tree.node(merge).value {
            Value::Mapping(_) => vec![merge],
            Value::Sequence(bases) => bases.clone(),
            Value::Scalar(_) => Vec::new(),
        };
        if bases.is_empty() || bases.iter().any(|base| !matches!(self.tree.node(*base).value, Value::Mapping(_))) {
            return Err(self.fault_here(alias, "`<<` takes a mapping, or a list of mappings, to merge in"));
        }
        let mut known: HashSet<String> =
            children.iter().filter_map(|child| self.tree.key(*child)).map(str::to_owned).collect();
        if let Value::Mapping(own) = &mut self.tree.nodes[mapping.0 as usize].value {
            *own = children;
        }
        for base in bases {
            for child in self.tree.children(base).to_vec() {
                let Some((_, step)) = self.tree.node(child).parent.clone() else { continue };
                if self.tree.key(child).is_some_and(|key| known.insert(key.to_owned())) {
                    self.copy(child, Some((mapping, step)), alias)?;
                }
            }
        }
        Ok(())
    }

    fn fault_here(&self, place: Place, message: &str) -> Fault {
        let path = self.open.last().map_or_else(String::new, |open| self.tree.path(open.id));
        Fault { place, path, message: message.to_owned() }
    }
}

/// Whether the tag says "this is a string".
fn check_tag(tag: Option<&Tag>, at: Place) -> Result<bool, Fault> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
        Some(tag) => Err(fault(at, format!("the tag {} has no meaning here", quoted(&tag.to_string())))),
    }
}

/// The parser's words, and what an operator most often did.
fn explain(info: &str, text: &str, line: usize) -> String {
    if info == "recursion limit exceeded" {
        return format!("nested deeper than {MAX_DEPTH} levels");
    }
    let hint = match text.lines().nth(line.saturating_sub(1)) {
        Some(line) if line.trim_start_matches(' ').starts_with('\t') => " (indent with spaces, not with tabs)",
        None => " (the file ends here; is it whole?)",
        Some(_) if info.contains("end of stream") => {
            " (a quote or bracket that opens here is never closed; is the file whole?)"
        }
        Some(_) => "",
    };
    format!("not valid YAML: {info}{hint}")
}

fn place(marker: saphyr_parser::Marker) -> Place {
    Place { line: marker.line().max(1), column: marker.col() + 1 }
}

fn fault(place: Place, message: impl Into<String>) -> Fault {
    Fault { place, path: String::new(), message: message.into() }
}
