//! The body of a webhook as an operator writes it: a Jinja template that makes JSON of a message.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, filters};

use super::Message;

/// A template that makes JSON of every message: it was tried with all of them.
#[derive(Clone)]
pub struct Template {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
}

/// What is wrong with it, and where.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}, column {column} of the template: {message}")]
pub struct TemplateError {
    /// From 1, within the template.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub message: String,
}

impl Template {
    /// # Errors
    /// The text is no template, names what messages do not have, or makes something else than JSON of one.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.add_filter("tojson", to_json);
        environment.set_fuel(Some(FUEL));
        environment.set_debug(true);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| placed(&error, source))?;
        let template = Self { environment: Arc::new(environment), source: source.into() };
        for sample in Message::samples() {
            let body = template.try_render(&sample).map_err(|error| placed(&error, source).of(&sample))?;
            if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&body) {
                let message = format!("what it makes is no JSON ({error}): {}", body.trim());
                return Err(TemplateError { line: 1, column: 1, message }.of(&sample));
            }
        }
        Ok(template)
    }

    /// # Errors
    /// In words; only a message that is like none of the samples can cause one.
    pub fn render(&self, message: &Message) -> Result<String, String> {
        self.try_render(message).map_err(|error| placed(&error, &self.source).to_string())
    }

    fn try_render(&self, message: &Message) -> Result<String, Error> {
        self.environment.get_template(NAME)?.render(Serde(message))
    }
}

/// The filter of that name, but for what has no value: that is a slip in the template, and no `null`.
fn to_json(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    match value.is_undefined() {
        true => {
            let why = "what stands before it has no value; a slip, or `|default(\"\")` is missing";
            Err(Error::new(ErrorKind::UndefinedError, why))
        }
        false => filters::tojson(value, indent, options),
    }
}

impl TemplateError {
    fn of(self, sample: &Message) -> Self {
        Self { message: format!("for the event {}: {}", sample.kind, self.message), ..self }
    }
}

fn placed(error: &Error, source: &str) -> TemplateError {
    let start = error.range().map(|range| range.start);
    let before = start.and_then(|start| source.get(..start));
    let line = before.map(|text| text.matches('\n').count() + 1).or(error.line()).unwrap_or(1);
    let column = before.map_or(1, |text| text.rsplit('\n').next().unwrap_or_default().chars().count() + 1);
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let at = start.and_then(|start| source.get(start..error.range()?.end)).filter(|at| at.len() < 60);
    let message = match (error.kind(), at) {
        (ErrorKind::UndefinedError, Some(at)) => format!("`{}`: {what}", at.trim()),
        (_, _) => what,
    };
    TemplateError { line, column, message }
}

/// The environment is made of the source and nothing else.
impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Template {}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({:?})", self.source)
    }
}

const NAME: &str = "template";
/// Instructions of one rendering; a loop over all items takes a few hundred.
const FUEL: u64 = 50_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_makes_json_of_any_text() {
        let template = Template::parse("{\"text\": {{ (node ~ \": \" ~ text)|tojson }}}").expect("a template");
        let message = Message::samples().into_iter().next().expect("a sample");
        let body: serde_json::Value = serde_json::from_str(&template.render(&message).expect("JSON")).expect("JSON");
        assert_eq!(body["text"], format!("proxy-1: {}", message.text));
    }

    #[test]
    fn what_is_wrong_with_a_template_is_told_with_its_place() {
        for (source, expected) in [
            ("{\n  {{ text|tojson", "line 2, column "),
            (
                "{\n  {{ txt|tojson }}}",
                "line 2, column 10 of the template: for the event backend_down: `tojson`: what stands before it has no value",
            ),
            (
                "{\"pool\": {{ items[0].pool|tojson }}}",
                "line 1, column 27 of the template: for the event route_added: `tojson`: what stands before it has no value",
            ),
            ("{{ text|nonsense }}", "line 1, column 9 of the template: "),
            (
                "{\"text\": \"{{ text }}\"}",
                "line 1, column 1 of the template: for the event backend_down: what it makes is no JSON",
            ),
            ("{% for a in range(1000) %}{% for b in range(1000) %}1{% endfor %}{% endfor %}", "line 1, column "),
        ] {
            let error = Template::parse(source).expect_err(source).to_string();
            assert!(error.starts_with(expected), "{source}\n{error}");
        }
    }
}
