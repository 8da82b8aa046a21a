//! What a route is: method, path, the least role, what it takes and what it answers, and the call behind it.
//!
//! Routes are values, so that router, roles, query checks and the OpenAPI description come out of one table ([`crate::table`]).

use axum::http::Method;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use crate::call::{Answer, Call};
use crate::problem::Problem;
use crate::role::Least;

/// Something that a route answers a call with.
pub type Handler = fn(&Call) -> Result<Answer, Problem>;

/// One route.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Its method.
    pub method: Verb,
    /// Its path, as in [`crate::paths`].
    pub path: &'static str,
    /// The least that it asks of its caller.
    pub least: Least,
    /// What of it a token with a scope reaches.
    pub reach: Reach,
    /// Its name for programs.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    /// Query parameters that it takes.
    pub queries: &'static [Query],
    /// The body that it takes.
    pub body: Body,
    /// What it answers when all is well.
    pub replies: &'static [Reply],
    /// Answers carry an entity tag, and changes of the same path may ask for it.
    pub tagged: bool,
    /// What does it.
    pub(crate) handler: Handler,
}

/// A method; constants need one that is not [`Method`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// GET, and HEAD.
    Get,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
}

impl Verb {
    /// As HTTP writes it.
    #[must_use]
    pub fn method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Post => Method::POST,
            Self::Put => Method::PUT,
            Self::Patch => Method::PATCH,
            Self::Delete => Method::DELETE,
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub const fn is_read(self) -> bool {
        matches!(self, Self::Get)
    }
}

/// What of a route a caller with a scope reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All of it: it tells nothing about any volume.
    Free,
    /// `{name}` is a volume, which must be in the scope.
    Volume,
    /// The call itself looks at the scope.
    Inside,
    /// Nothing.
    Whole,
}

/// A query parameter.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub kind: QueryKind,
    /// Whether it must be there.
    pub required: bool,
    /// What it means.
    pub words: &'static str,
}

/// What a query parameter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKind {
    /// A whole number within bounds.
    Number {
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Text up to so many bytes.
    Text(usize),
    /// `key=value`, any number of times.
    Labels,
}

/// A type with a schema, for constants.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Its name among the components.
    pub name: fn() -> String,
    /// Puts it and all it needs among the components.
    pub collect: fn(&mut Vec<(String, RefOr<Schema>)>),
}

impl Shape {
    /// That of `T`.
    #[must_use]
    pub const fn of<T: ToSchema>() -> Self {
        Self {
            name: || T::name().into_owned(),
            collect: |components| {
                components.push((T::name().into_owned(), T::schema()));
                T::schemas(components);
            },
        }
    }
}

/// The body that a route takes.
#[derive(Debug, Clone, Copy)]
pub enum Body {
    /// None.
    Nothing,
    /// JSON.
    Json(Shape),
    /// Bytes as they are.
    Bytes,
}

/// An answer of a route when all is well.
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    /// Its HTTP status.
    pub status: u16,
    /// What is in it.
    pub content: Content,
}

/// What is in an answer.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    /// Nothing.
    Nothing,
    /// JSON.
    Json(Shape),
    /// JSON of any shape.
    AnyJson,
    /// Bytes as they are.
    Bytes,
    /// Prometheus text.
    Metrics,
}

impl Route {
    const fn new(method: Verb, path: &'static str, name: &'static str, summary: &'static str, handler: Handler) -> Self {
        let least = Least::Role(crate::role::Role::Admin);
        let (queries, replies): (&[Query], &[Reply]) = (&[], &[]);
        let (reach, body, tagged) = (Reach::Whole, Body::Nothing, false);
        Self { method, path, least, reach, name, summary, queries, body, replies, tagged, handler }
    }

    /// A route that changes nothing. Without more, a route is for admins only and answers nothing.
    #[must_use]
    pub(crate) const fn get(path: &'static str, name: &'static str, summary: &'static str, handler: Handler) -> Self {
        Self::new(Verb::Get, path, name, summary, handler)
    }

    pub(crate) const fn post(path: &'static str, name: &'static str, summary: &'static str, handler: Handler) -> Self {
        Self::new(Verb::Post, path, name, summary, handler)
    }

    pub(crate) const fn put(path: &'static str, name: &'static str, summary: &'static str, handler: Handler) -> Self {
        Self::new(Verb::Put, path, name, summary, handler)
    }

    pub(crate) const fn patch(path: &'static str, name: &'static str, summary: &'static str, handler: Handler) -> Self {
        Self::new(Verb::Patch, path, name, summary, handler)
    }

    pub(crate) const fn delete(path: &'static str, name: &'static str, summary: &'static str, handler: Handler) -> Self {
        Self::new(Verb::Delete, path, name, summary, handler)
    }

    pub(crate) const fn least(mut self, least: Least) -> Self {
        self.least = least;
        self
    }

    pub(crate) const fn reach(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    pub(crate) const fn queries(mut self, queries: &'static [Query]) -> Self {
        self.queries = queries;
        self
    }

    pub(crate) const fn takes(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    pub(crate) const fn answers(mut self, replies: &'static [Reply]) -> Self {
        self.replies = replies;
        self
    }

    pub(crate) const fn tagged(mut self) -> Self {
        self.tagged = true;
        self
    }

    /// Whether a change may ask for the tag that a GET of the same path shows.
    #[must_use]
    pub fn takes_if_match(&self) -> bool {
        !self.method.is_read() && self.sight().is_some()
    }

    /// The route that shows what this one changes, with its tag.
    pub(crate) fn sight(&self) -> Option<&'static Self> {
        crate::table::ROUTES.iter().find(|route| route.path == self.path && route.method == Verb::Get && route.tagged)
    }

    /// The names in braces in its path, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}
