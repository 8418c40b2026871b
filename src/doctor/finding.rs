//! What an examination found, a line each: what is well in green, what is broken in red with its likely cause. Pure.

use anstyle::{AnsiColor, Style};
use std::io::{self, Write};

const GREEN: Style = AnsiColor::Green.on_default();
const RED: Style = AnsiColor::Red.on_default().bold();

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The cluster.
    pub cluster: String,
    /// What was looked at: a backend's id, `tokenizer` or `lmcache`.
    pub subject: String,
    /// What was seen.
    pub fact: String,
    /// Where that is broken: the likely cause, and what to do.
    pub remedy: Option<String>,
}

/// All that was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examination {
    /// In the order of the configuration.
    pub findings: Vec<Finding>,
}

impl Finding {
    pub(super) fn well(cluster: &str, subject: &str, fact: impl Into<String>) -> Self {
        Self { cluster: cluster.to_owned(), subject: subject.to_owned(), fact: fact.into(), remedy: None }
    }

    pub(super) fn broken(
        cluster: &str,
        subject: &str,
        fact: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { remedy: Some(remedy.into()), ..Self::well(cluster, subject, fact) }
    }
}

impl Examination {
    /// What is broken.
    pub fn broken(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.remedy.is_some())
    }

    /// Whether nothing is.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.broken().next().is_none()
    }

    /// Writes a line for each finding, with colours, and one that sums them up.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let name = |finding: &Finding| format!("{} {}", finding.cluster, finding.subject);
        let width =
            self.findings.iter().map(|finding| name(finding).chars().count()).max().unwrap_or_default();
        for finding in &self.findings {
            let (name, fact) = (name(finding), &finding.fact);
            match &finding.remedy {
                None => writeln!(out, "{GREEN}ok    {GREEN:#}  {name:width$}  {fact}")?,
                Some(remedy) => writeln!(out, "{RED}BROKEN{RED:#}  {name:width$}  {fact}: {remedy}")?,
            }
        }
        let (all, broken) = (self.findings.len(), self.broken().count());
        match broken {
            0 => writeln!(out, "\nAll {all} checks are well."),
            _ => writeln!(out, "\n{broken} of {all} checks broken; what rests on them was not checked."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_and_the_last_line_sums_up() {
        let mut examination = Examination {
            findings: vec![
                Finding::well("llama", "vllm-0", "answers"),
                Finding::well("llama", "lmcache", "answers"),
            ],
        };
        let mut text = Vec::new();
        examination.write(&mut anstream::StripStream::new(&mut text)).unwrap();
        let shown =
            "ok      llama vllm-0   answers\nok      llama lmcache  answers\n\nAll 2 checks are well.\n";
        assert_eq!(String::from_utf8(text).unwrap(), shown);
        assert!(examination.is_well());

        examination.findings.push(Finding::broken("llama", "vllm-1", "sleeps", "wake it"));
        let mut text = Vec::new();
        examination.write(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("\u{1b}[1m\u{1b}[31mBROKEN\u{1b}[0m  llama vllm-1   sleeps: wake it\n"),
            "{text:?}"
        );
        assert!(text.ends_with("\n1 of 3 checks broken; what rests on them was not checked.\n"), "{text}");
        assert!(!examination.is_well());
    }
}
