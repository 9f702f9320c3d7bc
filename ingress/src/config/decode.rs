//! Tree -> serde types, with every problem instead of the first.
//!
//! serde stops at the first fault. [`decode`] notes it, drops the value at fault from view and decodes again, until
//! nothing is left to complain about; a mapping that lacks a key because its value was dropped goes silently. What comes
//! out holds everything that was right, so that the checks that follow can go on.

mod error;
mod located;

use std::collections::HashSet;

use serde::de::value::{BorrowedStrDeserializer, U32Deserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use self::error::OneOf;
pub(super) use self::error::{At, Error};
use self::located::{LOCATED, ONE_OR_MANY};
pub(super) use self::located::{Located, OneOrMany};
use super::problems::quoted;
use super::yaml::{NodeId, Scalar, Tree, Value};

/// Decodes what is right in `tree`; `report` hears of the rest and answers whether to go on.
///
/// `None` when the document itself is of no use.
pub(super) fn decode<T: DeserializeOwned>(tree: &Tree<'_>, mut report: impl FnMut(At, Error) -> bool) -> Option<T> {
    let mut dropped = HashSet::new();
    let mut misspelt = HashSet::new();
    loop {
        let error = match T::deserialize(NodeDeserializer { tree, dropped: &dropped, id: Tree::ROOT }) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let at = error.at.unwrap_or(At::Value(Tree::ROOT));
        let (At::Value(id) | At::Key(id)) = at;
        if let (Some(parent), Some(meant)) = (tree.parent(id), &error.suggestion) {
            misspelt.insert((parent, meant.clone()));
        }
        let follows_from_another = error.missing_key.is_some_and(|key| {
            tree.child(id, key).is_some_and(|child| dropped.contains(&child))
                || misspelt.contains(&(id, key.to_owned()))
        });
        if !follows_from_another && !report(at, error) {
            return None;
        }
        if id == Tree::ROOT || !dropped.insert(id) {
            return None;
        }
    }
}

#[derive(Clone, Copy)]
struct NodeDeserializer<'t> {
    tree: &'t Tree<'t>,
    dropped: &'t HashSet<NodeId>,
    id: NodeId,
}

impl<'t> NodeDeserializer<'t> {
    fn value(&self) -> &'t Value<'t> {
        &self.tree.node(self.id).value
    }

    fn scalar(&self) -> Option<&'t Scalar<'t>> {
        match self.value() {
            Value::Scalar(scalar) => Some(scalar),
            Value::Sequence(_) | Value::Mapping(_) => None,
        }
    }

    /// The innermost value that knows itself at fault is the place to show.
    fn placed<T>(self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| Error { at: error.at.or(Some(At::Value(self.id))), ..error })
    }

    fn expected<T>(self, expected: &dyn Expected) -> Result<T, Error> {
        if self.scalar().is_some_and(Scalar::is_null) && self.tree.key(self.id).is_some() {
            let error: Error =
                de::Error::custom(format_args!("this key has no value; write {expected}, or remove the key"));
            return Err(Error { at: Some(At::Key(self.id)), ..error });
        }
        let found = match self.value() {
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
            Value::Scalar(scalar) if scalar.is_null() => "nothing".to_owned(),
            Value::Scalar(scalar) => quoted(&scalar.text),
        };
        self.placed(Err(de::Error::custom(format_args!("expected {expected}, found {found}"))))
    }

    fn children(self) -> Children<'t> {
        Children { parent: self, ids: self.tree.children(self.id).iter(), value: None }
    }
}

impl<'t> Deserializer<'t> for NodeDeserializer<'t> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.placed(match self.value() {
            Value::Sequence(_) => visitor.visit_seq(self.children()),
            Value::Mapping(_) => visitor.visit_map(self.children()),
            Value::Scalar(scalar) if scalar.is_null() => return self.expected(&visitor),
            Value::Scalar(scalar) => {
                if let Some(value) = scalar.as_bool() {
                    visitor.visit_bool(value)
                } else if let Some(value) = scalar.as_integer() {
                    visitor.visit_i64(value)
                } else if let Some(value) = scalar.as_float() {
                    visitor.visit_f64(value)
                } else {
                    visitor.visit_borrowed_str(&scalar.text)
                }
            }
        })
    }

    /// Any word will do, also one that looks like a number.
    fn deserialize_str<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.scalar() {
            Some(scalar) if !scalar.is_null() => self.placed(visitor.visit_borrowed_str(&scalar.text)),
            Some(_) | None => self.expected(&visitor),
        }
    }

    fn deserialize_string<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    /// Whoever writes a key gives it a value: a file that was cut off after a key is not taken for a whole one.
    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple_struct<V: Visitor<'t>>(
        self,
        name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match (name, self.value()) {
            (LOCATED, _) => visitor.visit_seq(IdThenValue { id: Some(self.id), node: self }),
            (ONE_OR_MANY, Value::Scalar(_) | Value::Mapping(_)) => visitor.visit_seq(Single(Some(self))),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value() {
            Value::Mapping(_) => self.deserialize_map(visitor),
            Value::Scalar(_) | Value::Sequence(_) => self.expected(&visitor),
        }
    }

    fn deserialize_map<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value() {
            Value::Mapping(_) => self.placed(visitor.visit_map(self.children())),
            Value::Scalar(_) | Value::Sequence(_) => self.expected(&"a mapping"),
        }
    }

    fn deserialize_seq<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value() {
            Value::Sequence(_) => self.placed(visitor.visit_seq(self.children())),
            Value::Scalar(_) | Value::Mapping(_) => self.expected(&"a list"),
        }
    }

    fn deserialize_enum<V: Visitor<'t>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.scalar() {
            Some(scalar) if !scalar.is_null() => self.placed(visitor.visit_enum(Word(&scalar.text))),
            Some(_) | None => self.expected(&OneOf(variants).to_string().as_str()),
        }
    }

    forward_to_deserialize_any! {
        <V: Visitor<'t>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple identifier
        ignored_any
    }
}

/// Items of a list or entries of a mapping that are still in view.
struct Children<'t> {
    parent: NodeDeserializer<'t>,
    ids: std::slice::Iter<'t, NodeId>,
    value: Option<NodeDeserializer<'t>>,
}

impl<'t> Children<'t> {
    fn next(&mut self) -> Option<NodeDeserializer<'t>> {
        let NodeDeserializer { tree, dropped, id: _ } = self.parent;
        let id = *self.ids.find(|id| !dropped.contains(id))?;
        Some(NodeDeserializer { tree, dropped, id })
    }
}

impl<'t> SeqAccess<'t> for Children<'t> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        self.next().map(|node| seed.deserialize(node)).transpose()
    }
}

impl<'t> MapAccess<'t> for Children<'t> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'t>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(node) = self.next() else { return Ok(None) };
        self.value = Some(node);
        let key = node.tree.key(node.id).unwrap_or_default();
        let result = seed.deserialize(BorrowedStrDeserializer::new(key));
        result.map(Some).map_err(|error: Error| Error { at: Some(At::Key(node.id)), ..error })
    }

    fn next_value_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<S::Value, Error> {
        match self.value.take() {
            Some(node) => seed.deserialize(node),
            None => Err(de::Error::custom("a value was asked for before its key")),
        }
    }
}

struct IdThenValue<'t> {
    id: Option<NodeId>,
    node: NodeDeserializer<'t>,
}

impl<'t> SeqAccess<'t> for IdThenValue<'t> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        match self.id.take() {
            Some(NodeId(id)) => {
                let id: U32Deserializer<Error> = id.into_deserializer();
                seed.deserialize(id).map(Some)
            }
            None => seed.deserialize(self.node).map(Some),
        }
    }
}

struct Single<'t>(Option<NodeDeserializer<'t>>);

impl<'t> SeqAccess<'t> for Single<'t> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        self.0.take().filter(|node| !node.dropped.contains(&node.id)).map(|node| seed.deserialize(node)).transpose()
    }
}

/// A word that names a variant without content.
struct Word<'t>(&'t str);

impl<'t> EnumAccess<'t> for Word<'t> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'t>>(self, seed: S) -> Result<(S::Value, Self), Error> {
        Ok((seed.deserialize(BorrowedStrDeserializer::<Error>::new(self.0))?, self))
    }
}

impl<'t> VariantAccess<'t> for Word<'t> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'t>>(self, _: S) -> Result<S::Value, Error> {
        Err(de::Error::custom("this word alone is not enough"))
    }

    fn tuple_variant<V: Visitor<'t>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("this word alone is not enough"))
    }

    fn struct_variant<V: Visitor<'t>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("this word alone is not enough"))
    }
}
