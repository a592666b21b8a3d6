#include "apps/forge/text_source.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <thread>

#include "apps/forge/test_folder.h"
#include "forge/base/error.h"

namespace forge::app {
namespace {

TEST(TextSource, RefusesWhatIsAbsentEmptyOrNotText) {
  const TestFolder folder;
  EXPECT_THROW(read_text({folder / "absent.txt"}), Error);
  EXPECT_THROW(read_text({folder.path()}), Error);
  EXPECT_THROW(read_text({folder.write("empty.txt", "")}), Error);
  EXPECT_THROW(read_text({folder.write("binary.txt", std::string("a\0b", 3))}), Error);
  EXPECT_THROW(read_text({folder.write("latin1.txt", "caf\xE9")}), Error);
}

TEST(TextSource, ReadsAPipeThatSomebodyWritesTo) {
  const TestFolder folder;
  const auto pipe = folder / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const std::string text(200'000, 'x');  // more than a pipe holds
  std::thread writer([&] { std::ofstream(pipe) << text; });
  EXPECT_EQ(read_text({pipe}).documents.at(0).text, text);
  writer.join();
}

TEST(TextSource, RefusesWhatHasNoEndOrCannotBeOpened) {
  const TestFolder folder;
  std::filesystem::create_symlink("loop", folder / "loop");
  for (const std::filesystem::path& path : {std::filesystem::path("/dev/zero"), std::filesystem::path("/dev/null"),
                                            std::filesystem::path("/dev/tty"), folder / "loop"})
    EXPECT_THROW(read_text({path}), Error) << path;
}

TEST(TextSource, TakesAFoldersTextInPathOrderAndCountsTheRest) {
  const TestFolder folder;
  folder.write("b.txt", "second");
  folder.write("a/deep.txt", "first");
  folder.write(".hidden", "never");
  folder.write("image.bin", std::string("\0\1", 2));
  folder.write("latin1.txt", "caf\xE9");
  const TextSource source = read_text({folder.path()});
  ASSERT_EQ(source.documents.size(), 2u);
  EXPECT_EQ(source.documents[0].text, "first");
  EXPECT_EQ(source.documents[1].text, "second");
  EXPECT_EQ(source.bytes, 11);
  EXPECT_EQ(source.skipped_binary, 1);
  EXPECT_EQ(source.skipped_not_utf8, 1);
}

TEST(TextSource, StopsBeforeTheFileAboveTheLimit) {
  const TestFolder folder;
  for (const char* name : {"a", "b", "c"}) folder.write(name, "12345");
  EXPECT_EQ(read_text({folder.path()}, 10).documents.size(), 2u);
  EXPECT_EQ(read_text({folder.path()}, 1).documents.size(), 1u);
}

TEST(TextSource, KnowsUtf8) {
  for (const char* text : {"", "plain", "π", "한", "😀"}) EXPECT_TRUE(is_utf8(text)) << text;
  // A lone continuation, overlong forms, a surrogate, above U+10FFFF, cut short.
  for (const char* text : {"\x80", "\xC0\xAF", "\xE0\x80\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82"}) {
    EXPECT_FALSE(is_utf8(text));
  }
}

TEST(TextSource, ReplacesBytesThatAreNoCharacter) {
  for (const char* text : {"", "plain", "π 한 😀"}) EXPECT_EQ(as_utf8(text), text);
  EXPECT_EQ(as_utf8("a\x80z\xE2\x82"), "a\uFFFDz\uFFFD\uFFFD");
  EXPECT_EQ(as_utf8("\xC3\xA9\xC3"), "é\uFFFD");
  EXPECT_EQ(as_utf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
}

}  // namespace
}  // namespace forge::app
