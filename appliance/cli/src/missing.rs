//! Names that are not there: says which were near, by asking for the list that the name should be in.

use lamina_api::problem::ProblemKind;
use serde_json::Value;

use crate::client::Client;
use crate::failure::Failure;
use crate::suggestion::nearest;

/// `did you mean 'web'?` for a failure that is about a name which nearly is there.
pub(crate) async fn suggestion(client: &Client, failure: &Failure) -> Option<String> {
    let (problem, path) = failure.refusal()?;
    if problem.kind != ProblemKind::NotFound {
        return None;
    }
    // `/api/v1/volumes/web/snapshots/daily`: lists and names in turn; the first name that its list does not have is the one.
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let mut list = String::new();
    for (at, part) in parts.iter().enumerate() {
        let is_name = at >= 3 && (at - 3) % 2 == 0;
        if is_name {
            let names = names(client, &list).await?;
            if !names.iter().any(|name| name == part) {
                return nearest(part, names.iter().map(String::as_str)).map(|name| format!("did you mean '{name}'?"));
            }
        }
        list.push('/');
        list.push_str(part);
    }
    None
}

/// Names of what is in the list at `path`.
pub(crate) async fn names(client: &Client, path: &str) -> Option<Vec<String>> {
    let page: Value = client.get(&format!("{path}?limit={}", lamina_api::page::MAX_LIMIT)).await.ok()?;
    let entries = page.as_object()?.values().find_map(Value::as_array)?;
    Some(entries.iter().filter_map(|entry| entry.get("name").or_else(|| entry.get("id"))?.as_str().map(str::to_owned)).collect())
}
