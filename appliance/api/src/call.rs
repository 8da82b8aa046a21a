//! One call: what was asked, parsed and checked; and its answer.

use std::sync::Arc;

use axum::body::Bytes;
use lamina_contract::VolumeName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::appliance::Appliance;
use crate::caller::Caller;
use crate::label::Labels;
use crate::metrics_pages::MetricsPages;
use crate::name::{JobId, Name, volume_name};
use crate::page::Page;
use crate::problem::{Problem, ProblemKind};
use crate::role::Role;
use crate::route::{Query, QueryKind, Route};
use crate::tag::{Tagged, tag_of};

/// What a handler gets.
pub struct Call {
    pub(crate) appliance: Arc<dyn Appliance>,
    pub(crate) pages: Arc<MetricsPages>,
    pub(crate) caller: Caller,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

/// What a handler answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub(crate) status: u16,
    pub(crate) media_type: &'static str,
    pub(crate) tag: Option<String>,
    pub(crate) body: Bytes,
    /// Whoever waits for an end may ask again.
    pub(crate) unfinished: bool,
}

pub(crate) const JSON: &str = "application/json";
pub(crate) const BYTES: &str = "application/octet-stream";
pub(crate) const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Answer {
    /// 204.
    pub(crate) fn nothing() -> Self {
        Self { status: 204, media_type: JSON, tag: None, body: Bytes::new(), unfinished: false }
    }

    /// JSON.
    pub(crate) fn json<T: Serialize>(status: u16, body: &T) -> Result<Self, Problem> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Problem::new(ProblemKind::Internal, format!("the answer could not be written: {error}")))?;
        Ok(Self { status, body: body.into(), ..Self::nothing() })
    }

    /// JSON with an entity tag.
    pub(crate) fn tagged<T: Serialize + Tagged>(status: u16, body: &T) -> Result<Self, Problem> {
        Ok(Self { tag: Some(tag_of(body)?), ..Self::json(status, body)? })
    }

    /// Something that is not JSON.
    pub(crate) fn other(media_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status: 200, media_type, body: body.into(), ..Self::nothing() }
    }
}

impl Call {
    fn parameter(&self, name: &str) -> Result<&str, Problem> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).ok_or_else(|| Problem::new(ProblemKind::Internal, "a route lacks its parameter"))
    }

    /// The volume in the path.
    pub(crate) fn volume(&self) -> Result<VolumeName, Problem> {
        volume_name(self.parameter("name")?)
    }

    /// The name in the path.
    pub(crate) fn name(&self) -> Result<Name, Problem> {
        Name::new(self.parameter("name")?)
    }

    /// The snapshot in the path.
    pub(crate) fn snapshot(&self) -> Result<Name, Problem> {
        Name::new(self.parameter("snapshot")?)
    }

    /// The job in the path.
    pub(crate) fn job(&self) -> Result<JobId, Problem> {
        self.parameter("id")?.parse()
    }

    /// The body.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Problem::new(ProblemKind::InvalidRequest, format!("the body is not the expected JSON: {error}")))
    }

    /// A query parameter's text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
    }

    /// A query parameter's number; its bounds were checked.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// A query parameter that is `true` or `false`.
    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.text(name).map(|text| text == "true")
    }

    /// The labels that are asked for.
    pub(crate) fn labels(&self) -> Result<Labels, Problem> {
        let mut labels = Labels::default();
        for (_, text) in self.query.iter().filter(|(key, _)| *key == "label") {
            labels.add(text)?;
        }
        Ok(labels)
    }

    /// The page that is asked for.
    pub(crate) fn page(&self) -> Result<Page, Problem> {
        let limit = self.number("limit").and_then(|limit| usize::try_from(limit).ok());
        Page::new(limit, self.text("cursor"))
    }

    /// Refuses callers who are not admins.
    pub(crate) fn only_admins(&self, what: &str) -> Result<(), Problem> {
        match self.caller.role {
            Role::Admin => Ok(()),
            _ => Err(Problem::new(ProblemKind::Forbidden, format!("only admins may {what}"))),
        }
    }
}

/// The query's parameters, each of them one that `route` takes.
pub(crate) fn parse_query(route: &Route, query: &str) -> Result<Vec<(&'static str, String)>, Problem> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(key)?, decode(value)?);
        let Some(known) = route.queries.iter().find(|known| known.name == key) else {
            let names: Vec<_> = route.queries.iter().map(|known| known.name).collect();
            let shown: String = key.chars().take(40).collect();
            return Err(wrong(format!("'{shown}' is no query parameter here")).advise(match names.is_empty() {
                true => "this path takes none".to_owned(),
                false => format!("this path takes {}", names.join(", ")),
            }));
        };
        if known.kind != QueryKind::Labels && found.iter().any(|(name, _)| *name == known.name) {
            return Err(wrong(format!("'{}' stands in the query twice", known.name)));
        }
        check(known, &value)?;
        found.push((known.name, value));
    }
    match route.queries.iter().find(|query| query.required && !found.iter().any(|(name, _)| *name == query.name)) {
        Some(missing) => Err(wrong(format!("the query lacks '{}'", missing.name))),
        None => Ok(found),
    }
}

fn wrong(detail: String) -> Problem {
    Problem::new(ProblemKind::InvalidRequest, detail)
}

fn check(query: &Query, value: &str) -> Result<(), Problem> {
    let name = query.name;
    match query.kind {
        QueryKind::Number { least, most } => {
            let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            let number = value.parse::<u64>().ok().filter(|number| digits && (least..=most).contains(number));
            number.map(|_| ()).ok_or_else(|| wrong(format!("'{name}' is a number from {least} to {most}")))
        }
        QueryKind::Flag if matches!(value, "true" | "false") => Ok(()),
        QueryKind::Flag => Err(wrong(format!("'{name}' is true or false"))),
        QueryKind::Word(words) if words.contains(&value) => Ok(()),
        QueryKind::Word(words) => Err(wrong(format!("'{name}' is one of {}", words.join(", ")))),
        QueryKind::Text(most) if value.len() <= most => Ok(()),
        QueryKind::Text(most) => Err(wrong(format!("'{name}' has at most {most} bytes"))),
        QueryKind::Labels => Labels::default().add(value).map_err(Problem::from),
    }
}

/// Percent-encoding (RFC 3986, 2.1), with `+` as a blank as forms write it.
fn decode(text: &str) -> Result<String, Problem> {
    let bad = || wrong("the query is not percent-encoded UTF-8".to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().ok_or_else(bad)?, rest.next().ok_or_else(bad)?];
                let hex = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits).ok_or_else(bad)?;
                std::str::from_utf8(&hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()).ok_or_else(bad)?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::{decode, parse_query};
    use crate::table::ROUTES;

    #[test]
    fn queries_are_decoded_and_strangers_refused() {
        assert_eq!(decode("a%20b+c%C3%A4").expect("text"), "a b cä");
        for bad in ["%", "%2", "%zz", "%ff", "%+1"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
        let route = ROUTES.iter().find(|route| route.name == "list-volumes").expect("there");
        let query = parse_query(route, "limit=5&label=a=b&label=c%3Dd&template=true").expect("right");
        assert_eq!(query.len(), 4);
        for bad in ["limit=0", "limit=1001", "limit=+5", "limit=5&limit=5", "colour=red", "template=yes", "label=x", "limit"] {
            assert!(parse_query(route, bad).is_err(), "{bad}");
        }
        let data = ROUTES.iter().find(|route| route.name == "read-volume-data").expect("there");
        assert!(parse_query(data, "offset=0").is_err());
    }
}
