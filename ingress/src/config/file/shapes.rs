//! What the types of the file have in common: values that are left out, and values of two shapes.

/// serde wants a function for each default.
macro_rules! default_functions {
    ($($function:ident() -> $type:ty = $value:expr;)*) => {$(
        fn $function() -> $type {
            $value
        }
    )*};
}

/// Decodes what is either one word or a mapping. serde's own `untagged` would try both and say why neither fits,
/// without a place.
macro_rules! word_or_mapping {
    ($type:ident, $expecting:literal, $word:ident, $mapping:ident) => {
        impl<'de> ::serde::Deserialize<'de> for $type {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use ::serde::de::value::{MapAccessDeserializer, StrDeserializer};

                struct Either;

                impl<'de> ::serde::de::Visitor<'de> for Either {
                    type Value = $type;

                    fn expecting(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: ::serde::de::Error>(self, word: &str) -> Result<$type, E> {
                        ::serde::Deserialize::deserialize(StrDeserializer::new(word)).map($type::$word)
                    }

                    fn visit_map<A: ::serde::de::MapAccess<'de>>(self, mapping: A) -> Result<$type, A::Error> {
                        ::serde::Deserialize::deserialize(MapAccessDeserializer::new(mapping)).map($type::$mapping)
                    }
                }

                deserializer.deserialize_any(Either)
            }
        }
    };
}
