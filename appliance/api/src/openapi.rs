//! The OpenAPI description (3.1) of the interface, made of the table of routes and the types' schemas.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use crate::call::{BYTES, JSON, METRICS};
use crate::problem::{Problem, ProblemKind};
use crate::role::Least;
use crate::route::{Body, Content, Query, QueryKind, Route, Shape, Verb};
use crate::table::ROUTES;

/// The description as text, the same at every call.
#[must_use]
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&document()).unwrap_or_default();
    text.push('\n');
    text
}

fn document() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in ROUTES {
        let verb = route.method.method().as_str().to_ascii_lowercase();
        paths.entry(route.path).or_default().insert(verb, operation(route));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Lamina",
            "version": "v1",
            "description": "The management interface of a Lamina appliance. Sizes are numbers of bytes, times are RFC 3339 in UTC.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
            },
        },
        "security": [{"token": []}, {"certificate": []}],
    })
}

/// Every type that a route names and all that these need, by name.
fn schemas() -> BTreeMap<String, Value> {
    let mut found: Vec<(String, RefOr<Schema>)> = Vec::new();
    for route in ROUTES {
        if let Body::Json(shape) = route.body {
            (shape.collect)(&mut found);
        }
        for reply in route.replies {
            if let Content::Json(shape) = reply.content {
                (shape.collect)(&mut found);
            }
        }
    }
    (Shape::of::<Problem>().collect)(&mut found);
    found.into_iter().map(|(name, schema)| (name, serde_json::to_value(schema).unwrap_or_default())).collect()
}

fn reference(shape: Shape) -> Value {
    json!({"$ref": format!("#/components/schemas/{}", (shape.name)())})
}

fn operation(route: &Route) -> Value {
    let role = match route.least {
        Least::Known => "any role".to_owned(),
        Least::Role(role) => format!("at least {}", role.as_str()),
    };
    let tag = route.path.split('/').nth(3).unwrap_or("metrics");
    let mut operation = json!({
        "operationId": route.name,
        "summary": route.summary,
        "description": format!("For {role}."),
        "tags": [tag],
        "parameters": parameters(route),
        "responses": responses(route),
    });
    let content = match route.body {
        Body::Nothing => None,
        Body::Json(shape) => Some(json!({JSON: {"schema": reference(shape)}})),
        Body::Bytes => Some(json!({BYTES: {"schema": {"type": "string", "format": "binary", "minLength": 1}}})),
    };
    if let (Some(content), Some(fields)) = (content, operation.as_object_mut()) {
        fields.insert("requestBody".to_owned(), json!({"required": true, "content": content}));
    }
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let mut parameters: Vec<Value> = route
        .parameters()
        .map(|name| {
            let pattern = if name == "id" { "^[0-9a-f]{16}$" } else { crate::name::NAME_PATTERN };
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "pattern": pattern}})
        })
        .collect();
    parameters.extend(route.queries.iter().map(query));
    let header = |name: &str, words: &str| json!({"name": name, "in": "header", "required": false, "description": words, "schema": {"type": "string"}});
    if route.method == Verb::Post {
        let mut key = header(
            "Idempotency-Key",
            "Sent again with the same key, the request is answered again and not done again; kept for a day.",
        );
        if let Some(fields) = key.as_object_mut() {
            fields.insert("schema".to_owned(), json!({"type": "string", "pattern": "^[!-~]{1,255}$"}));
        }
        parameters.push(key);
    }
    if route.tagged && route.method == Verb::Get {
        parameters.push(header("If-None-Match", "Answer 304 when it is still this."));
    }
    if route.takes_if_match() {
        parameters.push(header("If-Match", "Only when it is still this."));
    }
    parameters
}

fn query(query: &Query) -> Value {
    let schema = match query.kind {
        QueryKind::Number { least, most } => json!({"type": "integer", "format": "int64", "minimum": least, "maximum": most}),
        QueryKind::Flag => json!({"type": "boolean"}),
        QueryKind::Word(words) => json!({"type": "string", "enum": words}),
        QueryKind::Text(most) => json!({"type": "string", "maxLength": most}),
        QueryKind::Labels => json!({"type": "array", "items": {"type": "string"}}),
    };
    json!({"name": query.name, "in": "query", "required": query.required, "description": query.words, "schema": schema})
}

fn responses(route: &Route) -> Map<String, Value> {
    let mut responses = Map::new();
    for reply in route.replies {
        let words =
            axum::http::StatusCode::from_u16(reply.status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
        let mut response = json!({"description": words});
        let content = match reply.content {
            Content::Nothing => None,
            Content::Json(shape) => Some(json!({JSON: {"schema": reference(shape)}})),
            Content::AnyJson => Some(json!({JSON: {"schema": {"type": "object"}}})),
            Content::Bytes => Some(json!({BYTES: {"schema": {"type": "string", "format": "binary"}}})),
            Content::Metrics => Some(json!({METRICS: {"schema": {"type": "string"}}})),
        };
        if let (Some(content), Some(fields)) = (content, response.as_object_mut()) {
            fields.insert("content".to_owned(), content);
        }
        if let (true, Some(fields)) = (route.tagged && reply.status != 204, response.as_object_mut()) {
            fields.insert("headers".to_owned(), json!({"ETag": {"schema": {"type": "string"}}}));
        }
        responses.insert(reply.status.to_string(), response);
    }
    if route.tagged && route.method == Verb::Get {
        responses.insert("304".to_owned(), json!({"description": "Not Modified"}));
    }
    let problem = json!({(Problem::MEDIA_TYPE): {"schema": reference(Shape::of::<Problem>())}});
    for kind in ProblemKind::ALL.into_iter().filter(|kind| possible(route, *kind)) {
        responses.insert(kind.status().to_string(), json!({"description": kind.title(), "content": problem}));
    }
    responses
}

/// Whether a call of this route can end so.
fn possible(route: &Route, kind: ProblemKind) -> bool {
    match kind {
        ProblemKind::KeyReused => route.method == Verb::Post,
        ProblemKind::PreconditionFailed => route.takes_if_match(),
        ProblemKind::TooLarge => !matches!(route.body, Body::Nothing),
        ProblemKind::NotFound => !matches!(route.name, "show-version" | "show-openapi"),
        ProblemKind::MethodNotAllowed => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    /// `LAMINA_UPDATE=1 cargo test -p lamina-api openapi` writes it anew.
    #[test]
    fn the_committed_description_is_what_the_interface_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let text = super::text();
        if std::env::var_os("LAMINA_UPDATE").is_some() {
            std::fs::write(path, &text).expect("written");
        }
        let committed = std::fs::read_to_string(path).expect("appliance/api/openapi.json");
        assert!(committed == text, "openapi.json is not what the code says: run this test with LAMINA_UPDATE=1 and commit it");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = super::document();
        let text = document.to_string();
        let mut references = 0;
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().expect("a name");
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
            references += 1;
        }
        assert!(references > 100, "{references}");
    }
}
