//! Names that are not there: says which were near, by asking for the list that the name should be in.

use lamina_api::paths;
use lamina_api::problem::ProblemKind;
use serde_json::Value;

use crate::client::Client;
use crate::failure::Failure;
use crate::suggestion::nearest;

/// `did you mean 'web'?` for a failure that is about a name which nearly is there.
pub(crate) async fn suggestion(client: &Client, failure: &Failure) -> Option<String> {
    let (problem, path) = failure.refusal()?;
    // Numbers of jobs are near each other and mean nothing.
    if path.starts_with(paths::JOBS) {
        return None;
    }
    let (list, missing) = match problem.kind {
        ProblemKind::NotFound => match missing_in_path(client, path).await {
            Some(found) => found,
            None => missing_in_words(&problem.detail)?,
        },
        // What a request's body names need not be what its path is about: a VM's volumes.
        ProblemKind::InvalidRequest => missing_in_words(&problem.detail)?,
        _ => return None,
    };
    let names = names(client, &list).await?;
    let near = nearest(&missing, names.iter().map(String::as_str).filter(|name| *name != missing))?;
    let said = problem.detail.contains(&format!("'{missing}'"));
    Some(if said { format!("did you mean '{near}'?") } else { format!("nor is there '{missing}': did you mean '{near}'?") })
}

/// `/api/v1/volumes/web/snapshots/daily`: lists and names in turn; the first name that its list does not have is the one.
async fn missing_in_path(client: &Client, path: &str) -> Option<(String, String)> {
    let mut list = String::new();
    for (at, part) in path.split('/').filter(|part| !part.is_empty()).enumerate() {
        let is_name = at >= 3 && (at - 3) % 2 == 0;
        if is_name && !names(client, &list).await?.iter().any(|name| name == part) {
            return Some((list, part.to_owned()));
        }
        list.push('/');
        list.push_str(part);
    }
    None
}

/// `volume 'web' has no snapshot 'dialy-1'` or `no volume 'wbe'`, when it was named in the request's body: as the daemon says it.
fn missing_in_words(detail: &str) -> Option<(String, String)> {
    let within = |list: &str, rest: &str| {
        let (of, rest) = rest.split_once("' has no snapshot '")?;
        Some((format!("{list}/{of}/snapshots"), rest.split_once('\'')?.0.to_owned()))
    };
    let alone = |list: &str, rest: &str| Some((list.to_owned(), rest.split_once('\'')?.0.to_owned()));
    let begins = |words| detail.strip_prefix(words);
    begins("volume '")
        .and_then(|rest| within(paths::VOLUMES, rest))
        .or_else(|| within(paths::VMS, begins("VM '")?))
        .or_else(|| alone(paths::VOLUMES, begins("no volume '")?))
        .or_else(|| alone(paths::VMS, begins("no VM '")?))
}

/// Names of what is in the list at `path`.
pub(crate) async fn names(client: &Client, path: &str) -> Option<Vec<String>> {
    let page: Value = client.get(&format!("{path}?limit={}", lamina_api::page::MAX_LIMIT)).await.ok()?;
    let entries = page.as_object()?.values().find_map(Value::as_array)?;
    Some(entries.iter().filter_map(|entry| entry.get("name").or_else(|| entry.get("id"))?.as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::missing_in_words;

    #[test]
    fn names_in_a_requests_body_are_looked_for_in_their_list() {
        let found = |detail: &str| missing_in_words(detail);
        let is = |list: &str, name: &str| Some((list.to_owned(), name.to_owned()));
        assert_eq!(found("volume 'web' has no snapshot 'dialy-1'"), is("/api/v1/volumes/web/snapshots", "dialy-1"));
        assert_eq!(found("VM 'shop' has no snapshot 'x'"), is("/api/v1/vms/shop/snapshots", "x"));
        assert_eq!(found("no volume 'wbe'"), is("/api/v1/volumes", "wbe"));
        assert_eq!(found("no VM 'shpo'"), is("/api/v1/vms", "shpo"));
        assert_eq!(found("volume 'web' is read-only"), None);
        assert_eq!(found("there is nothing at this path"), None);
    }
}
