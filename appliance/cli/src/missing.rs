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
    if problem.kind != ProblemKind::NotFound || path.starts_with(paths::JOBS) {
        return None;
    }
    let (list, missing) = match missing_in_path(client, path).await {
        Some(found) => found,
        None => missing_in_words(&problem.detail, path)?,
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

/// `no snapshot 'dialy-1'` when it was named in the request's body.
fn missing_in_words(detail: &str, path: &str) -> Option<(String, String)> {
    let (noun, rest) = detail.strip_prefix("no ")?.split_once(" '")?;
    let (name, _) = rest.split_once('\'')?;
    let list = match noun {
        "volume" => paths::VOLUMES.to_owned(),
        "vm" | "VM" => paths::VMS.to_owned(),
        "snapshot" => format!("{}/snapshots", path.rsplit_once('/')?.0),
        _ => return None,
    };
    Some((list, name.to_owned()))
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
        let found = missing_in_words("no snapshot 'dialy-1'", "/api/v1/volumes/web/rollback");
        assert_eq!(found, Some(("/api/v1/volumes/web/snapshots".to_owned(), "dialy-1".to_owned())));
        assert_eq!(missing_in_words("no volume 'wbe'", "/api/v1/vms").map(|(list, _)| list).as_deref(), Some("/api/v1/volumes"));
        assert_eq!(missing_in_words("there is nothing at this path", "/x"), None);
    }
}
