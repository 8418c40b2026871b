//! Results as they are kept in files: read back, or refused with one error that names the file. Used by `main`.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::result::{FORMAT, RunResult};

/// Reads what `run --json` wrote.
pub(crate) fn read(file: &Path) -> Result<RunResult> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    parse(&text).with_context(|| file.display().to_string())
}

/// Reads several; the first that cannot be read is the error.
pub(crate) fn read_all(files: &[PathBuf]) -> Result<Vec<RunResult>> {
    files.iter().map(|file| read(file)).collect()
}

fn parse(text: &[u8]) -> Result<RunResult> {
    let value: Value = serde_json::from_slice(text).context("not a result of `kvway-bench run`: no JSON")?;
    match value.get("format").map(Value::as_u64) {
        Some(Some(format)) if format == u64::from(FORMAT) => {}
        Some(Some(format)) => bail!("a result of format {format}; this program reads format {FORMAT}"),
        _ => bail!("not a result of `kvway-bench run`: it names no format"),
    }
    serde_json::from_value(value).context("a broken result of `kvway-bench run`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::html::tests::result;

    fn refused(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        fs::write(&file, text).unwrap();
        let error = format!("{:#}", read(&file).unwrap_err());
        assert!(error.contains("a.json") && !error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn a_result_that_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        fs::write(&file, serde_json::to_vec(&result("a")).unwrap()).unwrap();
        assert_eq!(read(&file).unwrap().configuration, result("a").configuration);
    }

    #[test]
    fn broken_and_foreign_files_are_one_error() {
        assert!(refused("").contains("no JSON"));
        assert!(refused("{\"requests\": 1}").contains("names no format"));
        assert!(refused("[]").contains("names no format"));
        assert!(refused("{\"format\": \"1\"}").contains("names no format"));
        assert!(refused("{\"format\": 99}").contains("a result of format 99; this program reads format 1"));
        assert!(refused("{\"format\": 1}").contains("missing field"));
        let missing = format!("{:#}", read(Path::new("/nonexistent/b.json")).unwrap_err());
        assert!(missing.contains("cannot read /nonexistent/b.json"), "{missing}");
    }
}
