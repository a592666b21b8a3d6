#include "apps/forge/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "apps/forge/test_folder.h"
#include "forge/base/error.h"

namespace forge::app {
namespace {

const char* const kSource = R"(def area(width, height):
    """The area of a rectangle."""
    if width < 0:
        raise ValueError("negative width")

    return width  *  height


class Shape:
    def __init__(self, sides):
        self.sides = sides
)";

std::vector<Document> documents() { return {{"a.py", kSource}, {"b.py", kSource}}; }

TEST(Tokenizer, RefusesWhatIsNoModel) {
  const TestFolder folder;
  EXPECT_THROW(Tokenizer::load(folder / "absent.model"), Error);
  EXPECT_THROW(Tokenizer::load(folder.write("text.model", "not a model")), Error);
  EXPECT_THROW(Tokenizer::load(folder.path()), Error);
}

TEST(Tokenizer, RefusesMorePiecesThanTheDataHas) { EXPECT_THROW(Tokenizer::train(documents(), 50000), Error); }

TEST(Tokenizer, DecodesWhatItEncodes) {
  const Tokenizer tokenizer = Tokenizer::train(documents(), 320);
  EXPECT_EQ(tokenizer.size(), 320);
  for (const std::string& text :
       {std::string(kSource), std::string("  leading\n\n\n and  double \t tab \r\n"), std::string("π 한 😀 never seen"),
        std::string(""), std::string("\n"), std::string(" "), std::string("<0x0A> <s> </s> <unk>")}) {
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(Tokenizer, HasPiecesForIndentation) {
  const Tokenizer tokenizer = Tokenizer::train(documents(), 320);
  EXPECT_LT(tokenizer.encode("        ").size(), 3u);
}

// A word that only stands in lines longer than SentencePiece takes; its letters stand everywhere.
TEST(Tokenizer, LearnsFromLongLines) {
  const std::string short_lines = "z q w x\n";
  for (const std::string& between : {std::string(" "), std::string(""), std::string("é")}) {
    std::string line;
    while (line.size() < 20'000) line += "zqwx" + between;
    const Tokenizer tokenizer = Tokenizer::train({{"a", short_lines + line + "\n" + short_lines}}, 266);
    EXPECT_LE(tokenizer.encode("zqwx").size(), 2u) << '"' << between << '"';
  }
}

TEST(Tokenizer, TrainsTheSameModelAgain) {
  EXPECT_EQ(Tokenizer::train(documents(), 320).serialized(), Tokenizer::train(documents(), 320).serialized());
}

TEST(Tokenizer, ComesBackFromAFile) {
  const TestFolder folder;
  const Tokenizer tokenizer = Tokenizer::train(documents(), 320);
  const Tokenizer loaded = Tokenizer::load(folder.write("tokenizer.model", tokenizer.serialized()));
  EXPECT_EQ(loaded.encode(kSource), tokenizer.encode(kSource));
  EXPECT_EQ(loaded.eos(), 2);
}

TEST(Tokenizer, OfBytesIsTheBytes) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_EQ(tokenizer.size(), 256);
  EXPECT_EQ(tokenizer.encode("a\xFF"), (std::vector<std::int32_t>{97, 255}));
  EXPECT_EQ(tokenizer.decode({97, 255}), "a\xFF");
  EXPECT_FALSE(tokenizer.eos());
}

TEST(EncodeAll, ClosesEachDocumentWhereThereIsAnEnd) {
  EXPECT_EQ(encode_all(Tokenizer::bytes(), {{"a", "x"}, {"b", "y"}}), (std::vector<std::int32_t>{'x', 'y'}));
  const Tokenizer tokenizer = Tokenizer::train(documents(), 320);
  const auto ids = encode_all(tokenizer, {{"a", "x"}, {"b", "y"}});
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *tokenizer.eos()), 2);
  EXPECT_EQ(ids.back(), *tokenizer.eos());
}

}  // namespace
}  // namespace forge::app
