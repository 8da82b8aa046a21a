//! Tokens, the audit log and kept answers.

use lamina_api::appliance::{Access, Overview};
use lamina_api::audit::{AuditLine, AuditList};
use lamina_api::caller::Caller;
use lamina_api::idempotency::KeptAnswer;
use lamina_api::instant::{parse_rfc3339, rfc3339};
use lamina_api::name::Name;
use lamina_api::page::{Page, Paged};
use lamina_api::problem::Problem;
use lamina_api::token::{CreateToken, DEFAULT_LIFE_SECONDS, NewToken, Token, TokenList};
use lamina_contract::Timestamp;

use super::{FakeAppliance, missing, taken};

impl Access for FakeAppliance {
    fn identify(&self, secret: &str) -> Option<Caller> {
        let state = self.state.lock();
        let (token, _) =
            state.tokens.values().find(|(token, own)| own == secret && parse_rfc3339(&token.expires) > Some(self.now()))?;
        Some(Caller { who: format!("token:{}", token.name), role: token.role, scope: token.scope.clone() })
    }

    fn tokens(&self, page: &Page) -> Result<TokenList, Problem> {
        let state = self.state.lock();
        let Paged { entries, next } = page.cut(state.tokens.values().map(|(token, _)| token.clone()), |token| token.name.clone());
        Ok(TokenList { tokens: entries, next })
    }

    fn create_token(&self, request: &CreateToken) -> Result<NewToken, Problem> {
        let mut state = self.state.lock();
        if state.tokens.contains_key(&request.name) {
            return Err(taken("token", &request.name));
        }
        let life = request.expires_in_seconds.unwrap_or(DEFAULT_LIFE_SECONDS);
        let token = Token {
            name: request.name.clone(),
            role: request.role,
            scope: request.scope.clone(),
            created: self.time(),
            expires: rfc3339(Timestamp(self.now().0 + life * 1000)),
        };
        let secret = format!("{}-secret", request.name);
        state.tokens.insert(request.name.clone(), (token.clone(), secret.clone()));
        Ok(NewToken { token, secret })
    }

    fn delete_token(&self, name: &Name) -> Result<(), Problem> {
        self.state.lock().tokens.remove(name.as_str()).map(|_| ()).ok_or_else(|| missing("token", name))
    }

    fn audit(&self, limit: usize) -> Result<AuditList, Problem> {
        Ok(AuditList { lines: self.state.lock().audit.iter().rev().take(limit).cloned().collect() })
    }

    fn record(&self, line: &AuditLine) {
        self.state.lock().audit.push(line.clone());
    }

    fn kept_answers(&self) -> Vec<KeptAnswer> {
        self.answers()
    }

    fn keep_answer(&self, answer: &KeptAnswer) -> Result<(), Problem> {
        self.state.lock().answers.insert(answer.key.clone(), answer.clone());
        Ok(())
    }

    fn drop_answer(&self, key: &str) {
        self.state.lock().answers.remove(key);
    }
}
