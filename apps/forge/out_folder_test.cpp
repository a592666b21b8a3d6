#include "apps/forge/out_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>

#include "apps/forge/test_folder.h"
#include "forge/base/error.h"

namespace forge::app {
namespace {

namespace fs = std::filesystem;

using Files = std::map<std::string, std::string>;

const std::vector<std::string> kNames = {"shard-1", "shard-2", "weights", "index", "tokenizer", "config"};
const Files kOldFiles = {{"shard-1", "1"}, {"shard-2", "2"}, {"index", "old index"}, {"config", "old config"}};
const Files kNewFiles = {{"weights", "w"}, {"tokenizer", "t"}, {"config", "new config"}};

void write_all(const fs::path& folder, const Files& files) {
  for (const auto& [name, text] : files) std::ofstream(folder / name) << text;
}

std::string text_of(const fs::path& file) {
  std::ifstream stream(file);
  return {std::istreambuf_iterator<char>(stream), {}};
}

// The files of a model as a reader finds them, through links.
Files model_in(const fs::path& folder) {
  Files files;
  for (const std::string& name : kNames)
    if (fs::is_regular_file(folder / name)) files[name] = text_of(folder / name);
  return files;
}

std::vector<std::string> entries_of(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    EXPECT_FALSE(entry.is_symlink()) << entry;
    names.push_back(entry.path().filename());
  }
  return names;
}

void replace(const fs::path& folder) {
  OutFolder(folder, kNames, /*force=*/true).save([](const fs::path& place) { write_all(place, kNewFiles); });
}

std::string refusal(const fs::path& path, bool force) {
  try {
    OutFolder(path, kNames, force);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(OutFolder, RefusesWhatCannotTakeAModel) {
  const TestFolder folder;
  const fs::path file = folder.write("file", "");
  folder.write("full/notes", "mine");
  fs::create_directories(folder / "odd/config");
  fs::create_directories(folder / "piped");
  ASSERT_EQ(mkfifo((folder / "piped/weights").c_str(), 0600), 0);
  fs::create_symlink("nowhere", folder / "dangling");
  fs::create_symlink("loop", folder / "loop");
  EXPECT_THAT(refusal("", false), testing::HasSubstr("empty"));
  EXPECT_THAT(refusal(file, true), testing::HasSubstr("Not a directory"));
  EXPECT_THAT(refusal(file / "below" / "deep", false), testing::HasSubstr("Not a directory"));
  EXPECT_THAT(refusal(folder / std::string(256, 'n'), false), testing::HasSubstr("name too long"));
  EXPECT_THAT(refusal(folder / "full", false), testing::HasSubstr("--force"));
  EXPECT_THAT(refusal(folder / "odd", true), testing::HasSubstr("is no file"));
  EXPECT_THAT(refusal(folder / "piped", true), testing::HasSubstr("is no file"));
  EXPECT_THAT(refusal(folder / "dangling", false), testing::HasSubstr("another folder"));
  EXPECT_THAT(refusal(folder / "loop", false), testing::HasSubstr("another folder"));
  EXPECT_TRUE(fs::is_symlink(folder / "dangling"));
  EXPECT_THAT(entries_of(folder / "full"), testing::ElementsAre("notes"));
}

TEST(OutFolder, GoesAgainWhereNothingWasSaved) {
  const TestFolder folder;
  { const OutFolder out(folder / "a/b/c", kNames, false); }
  EXPECT_FALSE(fs::exists(folder / "a"));
  write_all(folder.path(), kOldFiles);
  { const OutFolder out(folder.path(), kNames, true); }
  EXPECT_EQ(model_in(folder.path()), kOldFiles);
  EXPECT_THAT(entries_of(folder.path()), testing::SizeIs(kOldFiles.size()));
}

TEST(OutFolder, ReplacesAModelAndNothingElse) {
  const TestFolder folder;
  write_all(folder.path(), kOldFiles);
  folder.write("notes", "mine");
  folder.write("inner/config", "mine");
  replace(folder.path());
  EXPECT_EQ(model_in(folder.path()), kNewFiles);
  EXPECT_THAT(entries_of(folder.path()),
              testing::UnorderedElementsAre("weights", "tokenizer", "config", "notes", "inner"));
  EXPECT_EQ(text_of(folder / "notes") + text_of(folder / "inner/config"), "minemine");
}

TEST(OutFolder, FollowsLinksToTheFolderAndKeepsWhatLinkedFilesLeadTo) {
  const TestFolder folder;
  folder.write("blobs/a", "old config");
  folder.write("model/index", "old index");
  fs::create_symlink("../blobs/a", folder / "model/config");
  fs::create_directory_symlink("model", folder / "link");
  { const OutFolder rehearsed(folder / "link", kNames, true); }
  EXPECT_EQ(model_in(folder / "model"), (Files{{"index", "old index"}, {"config", "old config"}}));
  replace(folder / "link");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_EQ(model_in(folder / "model"), kNewFiles);
  EXPECT_EQ(text_of(folder / "blobs/a"), "old config");
}

TEST(OutFolder, KeepsTheOldModelWhereTheNewOneCannotBeWritten) {
  const TestFolder folder;
  write_all(folder.path(), kOldFiles);
  OutFolder out(folder.path(), kNames, true);
  const auto fails = [](const fs::path& place) {
    write_all(place, kNewFiles);
    fail("cannot write weights");
  };
  EXPECT_THROW(out.save(fails), Error);
  EXPECT_EQ(model_in(folder.path()), kOldFiles);
  EXPECT_THAT(entries_of(folder.path()), testing::SizeIs(kOldFiles.size()));
  EXPECT_THROW(out.check_room(std::uint64_t{1} << 60), Error);
}

TEST(OutFolder, ComesBackWhereItWasRemovedWhileTraining) {
  const TestFolder folder;
  OutFolder out(folder / "out", kNames, false);
  fs::remove_all(folder / "out");
  out.save([](const fs::path& place) { write_all(place, kNewFiles); });
  EXPECT_EQ(model_in(folder / "out"), kNewFiles);
}

TEST(OutFolder, IsOneRunsAtATime) {
  const TestFolder folder;
  const OutFolder first(folder / "out", kNames, false);
  EXPECT_THAT(refusal(folder / "out", true), testing::HasSubstr("another run"));
  EXPECT_EQ(refusal(folder / "other", true), "");
}

// Runs the replacement in a process of its own and kills it before its n-th system call. False where it has ended by
// then.
bool killed_at(int n, const fs::path& folder) {
  const pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(77);
    raise(SIGSTOP);
    replace(folder);
    _exit(0);
  }
  int status = 0;
  for (int stops = 0; waitpid(child, &status, 0) == child && WIFSTOPPED(status); ++stops) {
    if (stops == n) kill(child, SIGKILL);
    ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
  }
  return WIFSIGNALED(status);
}

bool can_trace() {
  const pid_t child = fork();
  if (child == 0) _exit(ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) == 0 ? 0 : 1);
  int status = 0;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// In memory where that is possible: each of the many runs waits for the disk a dozen times.
fs::path fast_place() { return fs::is_directory("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path(); }

// Before and after each system call, so between any two changes of the disk.
TEST(OutFolder, HoldsAWholeModelAfterAKillAnywhere) {
  if (!can_trace()) GTEST_SKIP() << "this machine does not let a process trace its child";
  int old = 0, n = 1;
  for (bool killed = true; killed; ++n) {
    const TestFolder folder(fast_place());
    write_all(folder.path(), kOldFiles);
    killed = killed_at(n, folder.path());
    const Files left = model_in(folder.path());
    ASSERT_TRUE(left == kOldFiles || left == kNewFiles) << "killed at stop " << n;
    old += left == kOldFiles;
    { const OutFolder next(folder.path(), kNames, true); }
    EXPECT_EQ(model_in(folder.path()), left);
    EXPECT_THAT(entries_of(folder.path()), testing::SizeIs(left.size()));
  }
  EXPECT_GT(old, 100);
  EXPECT_GT(n - old, 10);
}

}  // namespace
}  // namespace forge::app
